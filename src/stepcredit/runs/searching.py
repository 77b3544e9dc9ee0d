"""Sampling for policies that search by tags: a `rollout_func` that writes rollouts of several turns."""

from collections.abc import Sequence
from typing import Any

from stepcredit.errors import InputError
from stepcredit.runs.conversing import converse
from stepcredit.runs.grouped import end_ids, plain_sampling, sample_groups
from stepcredit.runs.protocols import TagProtocol


class SearchSampler:
    """A `rollout_func` for TRL: turns of plain sampling, with what the environment writes between them.

    Every turn of all unfinished rollouts is sampled together by `sample_groups`, from contexts that are read anew;
    equal prompts are read once. What the environment wrote is in the completions and 0 in ``env_mask``, so that TRL
    does not train on it.

    Args:
        protocol: How the policy searches.
        reference: The column of the data set from which environments are made.

    Raises:
        InputError: On the first call, if the trainer's settings ask for what plain sampling does not do, or it does
            not say for which rows it samples: only a trainer with credit does.
    """

    def __init__(self, protocol: TagProtocol, reference: str = "reference") -> None:
        self.protocol, self.reference = protocol, reference

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Ids of the prompts and of one completion each, and which of them the policy wrote; no log-probabilities."""
        inputs = getattr(trainer, "credit_inputs", None)
        if inputs is None or len(inputs) != len(prompts):
            raise InputError(
                "`trainer` must be a CreditGRPOTrainer, which says for which rows it generates; got a "
                f"{type(trainer).__name__} with {'none' if inputs is None else len(inputs)} for {len(prompts)} prompts."
            )
        prompt_ids = trainer._tokenize_prompts(prompts)[0]
        ends = end_ids(trainer)
        with plain_sampling(trainer) as model:

            def write(_: Sequence[int], contexts: list[list[int]], limits: list[int]) -> list[list[int]]:
                return sample_groups(
                    model, contexts, eos_ids=[*ends, *self.protocol.stop_ids], max_new_tokens=limits,
                    temperature=trainer.temperature, pad_id=trainer.processing_class.pad_token_id,
                    stops=self.protocol.stops,
                )  # fmt: skip

            dialogues = converse(
                self.protocol, prompt_ids, [str(row[self.reference]) for row in inputs], write,
                max_new_tokens=trainer.max_completion_length, ends=ends,
            )  # fmt: skip
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [dialogue.ids for dialogue in dialogues],
            "logprobs": None,
            "env_mask": [dialogue.mask for dialogue in dialogues],
        }
