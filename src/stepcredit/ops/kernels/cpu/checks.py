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
def _all_below(lo, hi, x, largest, begin, end, length, runs, starts, stops):  # type: ignore[no-untyped-def]
    for i in range(runs[lo], runs[hi]):
        run, bad = x[starts[i] : stops[i]], False
        for j in range(run.size):
            bad |= not (abs(run[j]) < largest)
        if bad:
            return False
    return True


@Kernel
def _signal_is_sound(lo, hi, x, steps, covers, largest, begin, end, length, runs, starts, stops):  # type: ignore[no-untyped-def]
    for r in range(lo, hi):
        step, at = -1, 0
        for i in range(runs[r], runs[r + 1]):
            for t in range(starts[i], stops[i]):
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
