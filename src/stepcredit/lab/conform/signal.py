"""Which process signals a batch and a target have."""

from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.lab.conform.law import Trial, Verdict

SIGNALS = ("process_rewards", "old_logprobs", "ref_logprobs", "teacher_logprobs", "base_logprobs")


def covered_tokens(batch: RolloutBatch) -> Tensor:
    """Bool [batch, time]: the response tokens with a signal."""
    covered = batch.response_mask.clone()
    if batch.step_ids is not None:
        covered &= batch.step_ids >= 0
    return covered if batch.process_mask is None else covered & batch.process_mask


def nothing_read(law: str, trial: Trial) -> Verdict | None:
    """A verdict at once where credit depends on no signal: nothing to say, or a field required and not read."""
    signals = SIGNALS[:1] if law in ("uncovered", "coverage", "unscored") else SIGNALS
    if any(trial.reads(name) for name in signals):
        return None
    required = [name for name in signals if name in trial.target.requires]
    if required:
        return Verdict(law, "BROKEN", f"requires `{required[0]}`, which change nothing")
    return Verdict(law, "n.a.", "reads no process signal")
