"""The reward manager: outcome where verl has it, process signal and format beside it, on tokens already.

It runs in verl's reward workers, beside the sampling, and its registered name is ``stepcredit``.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from stepcredit.adapters.verl.settings import is_ours, read_settings
from stepcredit.batch import Rollouts, ScoredSpan
from stepcredit.batch.rollouts import prompt_text
from stepcredit.errors import InputError
from stepcredit.signals import Signal, are_token_values, project, token_offsets
from stepcredit.tasks.segmentation import segment

_LOGGER = logging.getLogger(__name__)
KEY = "stepcredit"
"""Where the package travels: a key of ``reward_extra_info``, which verl carries along for every rollout."""
FAILED = "failed"
"""In a package: why there is no other. verl drops a rollout whose grading raised; this one reaches the controller."""
_NUMBERS = {"format": float, "correct": bool}


def reward_manager(base: type) -> type:
    """The naive reward manager of verl, taught to read what a reward function says beside the outcome.

    The reward function returns the outcome, or a dict of

    - ``score``: the outcome, which alone becomes verl's ``rm_scores``;
    - ``format``: the format reward, if the scheme reads one;
    - ``correct``: whether the answer is right, where that is not ``score > 0``;
    - ``process``: the process signal as ``(start, end, score)`` in characters of ``solution_str``, in order; what no
      span covers has no score. Not beside ``algorithm.stepcredit.signal``, which scores the steps instead;
    - ``extra``: further reward channels, name -> number;
    - anything else: logged by verl as ever.
    """

    class CreditRewardManager(base):  # type: ignore[misc]
        """Written for verl's `NaiveRewardManager`, whose `run_single` calls the reward function."""

        def __init__(self, config: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, tokenizer, *args, **kwargs)
            algorithm = config.algorithm
            settings = read_settings(algorithm) if is_ours(str(algorithm.adv_estimator)) else None
            self.signal = None if settings is None else settings.text_signal
            self.steps = "lines" if settings is None else settings.steps

        async def run_single(self, data: Any) -> dict[str, Any]:
            try:
                return await self._graded(_last_row(data))
            except Exception as error:  # raised again on the controller: see FAILED
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
                _LOGGER.error("a rollout could not be graded: %s", why, exc_info=True)
                return {"reward_score": float("nan"), "reward_extra_info": {KEY: json.dumps({FAILED: why})}}

        async def _graded(self, data: Any) -> dict[str, Any]:
            result: dict[str, Any] = await super().run_single(data)
            said = result["reward_extra_info"]
            process, extra = said.pop("process", None), said.pop("extra", None)
            signal = self.signal
            if signal is not None and process is not None:
                raise InputError(
                    "`process` must not be given by the reward function beside algorithm.stepcredit.signal; got both."
                )
            package: dict[str, Any] = {name: kind(said[name]) for name, kind in _NUMBERS.items() if name in said}
            if extra is not None:
                package["extra"] = {str(name): float(value) for name, value in dict(extra).items()}
            if process is not None or signal is not None:
                item = data[0]
                ids = _response_ids(item)
                text = self._decoded(ids)
                if signal is not None:
                    row = item.non_tensor_batch
                    process = await self.loop.run_in_executor(None, _scores, signal, row, text, self.steps)
                package["steps"] = token_steps(process, self.tokenizer, ids, text)
            said[KEY] = json.dumps(package)
            return result

        def _decoded(self, ids: list[int]) -> str:
            exact: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if self.tokenizer.decode(ids, skip_special_tokens=True) != exact:
                raise InputError(
                    "`clean_up_tokenization_spaces` must be False in the policy's tokenizer_config.json: spans of a "
                    "cleaned text have no tokens; got True."
                )
            return exact

    return CreditRewardManager


def token_steps(
    spans: Sequence[tuple[int, int, float]], tokenizer: Any, ids: Sequence[int], text: str
) -> list[list[float]]:
    """Scored character spans of a completion as runs of tokens, ``[step, first, end, score]`` each.

    Raises:
        InputError: Spans that leave the text, overlap or run backward.
    """
    scored = [ScoredSpan(int(start), int(end), float(score)) for start, end, score in spans]
    steps = project(scored, token_offsets(tokenizer, ids, text), text).step_ids
    runs = []
    for step, tokens in groupby(range(len(steps)), key=steps.__getitem__):
        inside = list(tokens)
        if step >= 0:
            runs.append([step, inside[0], inside[-1] + 1, scored[step].score])
    return runs


def _scores(signal: Signal, item: Mapping[str, Any], text: str, steps: str) -> Sequence[ScoredSpan]:
    messages = [dict(message) for message in item["raw_prompt"]]
    reference = item.get("reward_model", {}).get("ground_truth")
    rollouts = Rollouts(
        [prompt_text(messages)], [text], [0], messages=[messages],
        references=None if reference is None else [str(reference)], steps=[segment(text, steps)],  # type: ignore[arg-type]
    )  # fmt: skip
    scores = signal.score(rollouts)
    if are_token_values(scores):
        raise InputError(f"`algorithm.stepcredit.signal.type` must score spans of text; {signal.name} scores tokens.")
    return scores[0]  # type: ignore[return-value]


def _last_row(data: Any) -> Any:
    """The last of a rollout's rows, alone and unpadded.

    verl pads the rows of a rollout to one width and then takes the end of the attention mask for the response's, which
    it is for a single row.
    """
    row = data[-1:]
    if len(data) == 1 or "prompt_len" not in row.non_tensor_batch:
        return row
    prompt, response = (int(row.non_tensor_batch[name][0]) for name in ("prompt_len", "response_len"))
    tensors = {
        "prompts": row.batch["prompts"][:, :prompt],
        "responses": row.batch["responses"][:, :response],
        "attention_mask": row.batch["attention_mask"][:, : prompt + response],
        "input_ids": row.batch["input_ids"][:, : prompt + response],
    }
    return type(data).from_single_dict({**tensors, **row.non_tensor_batch})


def _response_ids(item: Any) -> list[int]:
    """The response's tokens without padding; the same that the naive manager decodes."""
    responses = item.batch["responses"]
    width = responses.shape[-1]
    length = int(item.batch["attention_mask"][-width:].sum())
    return [int(token) for token in responses[:length]]
