"""Whether token fields keep their rules, in one pass; what breaks one is named by `stepcredit.batch.checks`."""

from torch import Tensor

from stepcredit.ops.kernels.cpu.compiling import Kernel, array, over_rows, signal_arrays
from stepcredit.ops.kernels.operands import Rows, Signal


def all_below(x: Tensor, largest: float, rows: Rows) -> bool:
    """Whether ``|x| < largest`` on every response token."""
    return all(over_rows(_all_below, rows, array(x), largest))


def signal_is_sound(signal: Signal, largest: float, rows: Rows) -> bool:
    """Whether a process signal keeps its rules on the response tokens that it covers."""
    return all(over_rows(_signal_is_sound, rows, *signal_arrays(signal), largest))


@Kernel
def _all_below(lo, hi, x, largest, mask, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        a, b, bad = first[r], stop[r], False
        if b - a == length[r]:
            for t in range(a, b):
                bad |= not (abs(x[t]) < largest)
        else:
            for t in range(a, b):
                bad |= mask[t] and not (abs(x[t]) < largest)
        if bad:
            return False
    return True


@Kernel
def _signal_is_sound(lo, hi, x, steps, covers, largest, mask, begin, end, first, stop, length):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        a, b = first[r], stop[r]
        whole = b - a == length[r]
        step, at = -1, a
        for t in range(a, b):
            if not (whole or mask[t]):
                continue
            k = steps[t] if steps.size else 0
            if k < -1:
                return False
            if k < 0 or (covers.size and not covers[t]):
                continue
            if steps.size and k == step:
                if x.size and x[t] != x[at]:
                    return False
                continue
            if k < step or (x.size and not (abs(x[t]) < largest)):
                return False
            if steps.size:
                step, at = k, t
    return True
