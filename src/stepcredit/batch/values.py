"""The values of a `RolloutBatch` held to their rules: in one pass by kernels where those run, else check by check."""

from typing import TYPE_CHECKING

from torch import Tensor

from stepcredit.batch import checks
from stepcredit.ops.kernels.choosing import package, readable
from stepcredit.ops.kernels.operands import Signal, flat

if TYPE_CHECKING:
    from stepcredit.batch.rollout_batch import RolloutBatch

_LOGPROBS = ("old_logprobs", "ref_logprobs", "teacher_logprobs", "base_logprobs")


def check_values(batch: "RolloutBatch") -> None:
    """Refuses a batch, right in form, that holds a value that breaks a rule.

    Raises:
        InputError: The message names the field, the rule and the fact.
    """
    layout = batch.layout
    extra = {f"extra_rewards[{name!r}]": x for name, x in (batch.extra_rewards or {}).items()}
    channels = {"rewards": batch.rewards, "format_rewards": batch.format_rewards, **extra}
    for name, x in channels.items():
        if x is not None:
            checks.check_rows(name, x, layout.live)
    checks.check_format(batch.format_rewards, batch.format_ok, layout.live)
    logprobs = {name: getattr(batch, name) for name in _LOGPROBS if getattr(batch, name) is not None}
    if _sound(batch, list(logprobs.values())):
        return
    if batch.step_ids is not None:
        checks.check_steps(layout.pack(batch.step_ids), batch.covered, layout)
    if batch.process_rewards is not None:
        checks.check_tokens("process_rewards", batch.process_rewards, layout, batch.covered)
        if batch.step_ids is not None:
            checks.check_constant_in_steps(layout.pack(batch.process_rewards), batch.steps, layout)
    for name, x in logprobs.items():
        checks.check_tokens(name, x, layout)


def _sound(batch: "RolloutBatch", logprobs: list[Tensor]) -> bool:
    """Whether kernels find nothing against the token fields, each read once; False where they do not run.

    False says no more than that the checks have to look, which name what they find.
    """
    layout, signal = batch.layout, batch.process_rewards
    fields = logprobs if signal is None else [signal, *logprobs]
    if readable(layout.response_mask.numel(), layout.device, *fields) is not None:
        return False
    rows, kernels = layout.in_place, package(layout.device)
    if batch.step_ids is not None or batch.process_mask is not None:
        if not kernels.signal_is_sound(Signal.of(signal, batch.step_ids, batch.process_mask), checks.LARGEST, rows):
            return False
        fields = logprobs
    return all(kernels.all_below(flat(x), checks.LARGEST, rows) for x in fields)
