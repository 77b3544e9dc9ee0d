"""What batching does for signals: our readers against the plain ways to do the same, by the clock and by memory."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepcredit.batch import Rollouts
from stepcredit.errors import InputError
from stepcredit.lab.bench.memory import peak_memory
from stepcredit.lab.bench.paired_times import paired_times, spread
from stepcredit.lab.bench.texts import causal_model, made_solutions, read_solutions, save_prm
from stepcredit.signals.causal import sequence_logprobs
from stepcredit.signals.prm import PRM

BATCH = 8  # solutions of a plain batch


def bench_signals(
    data: str | Path | None = None,
    *,
    rows: int = 128,
    repeats: int = 5,
    width: int = 256,
    layers: int = 4,
    vocabulary: int = 50_257,
) -> dict[str, Any]:
    """Times a process reward model and log-probabilities on ragged solutions, and their peak memory.

    Scores: `PRM` as it is, against batches of 8 in the file's order, each padded to its longest. Log-probabilities:
    `sequence_logprobs` against whole logits of the same batches, read row by row in float32. All have the same model,
    take turns in one process, and must give the same numbers. Memory is taken in processes of their own.

    Args:
        data: A file of labeled solutions, as ProcessBench; None: solutions of random words.
        rows: How many solutions, from the file's beginning.
        repeats: How many times each alternative is timed, after one run for nothing.
        width: Hidden size of the models, which have random weights.
        layers: Their layers.
        vocabulary: The tokens of the language model.

    Returns:
        Plain values: ``data`` (rows, real tokens, the longest, the share of padding in plain batches), ``models``,
        and ``scores`` and ``logprobs``, each with real tokens a second, seconds (median, least, greatest), the ratio
        of each round's times (plain over ours, likewise) and the greatest difference of the numbers; ``logprobs``
        also with both peaks in bytes, and their ratio.

    Raises:
        InputError: A number out of its range, or see `read_solutions`.
        StepCreditError: Memory could not be measured.
    """
    for name, value, least in (("rows", rows, 1), ("repeats", repeats, 1), ("layers", layers, 1)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}; got {value}.")
    rollouts = made_solutions(rows) if data is None else read_solutions(data, rows)
    with tempfile.TemporaryDirectory() as folder:
        weights = save_prm(folder, rollouts, width=width, layers=layers)
        prm = PRM(folder, preset="trl", separator="\n", device="cpu")
        lengths, scores = _bench_scores(prm, rollouts, repeats)
        tokenizer = prm.reader.layout.words.tokenizer
        prompts = [tokenizer.encode(text) for text in rollouts.prompts]
        completions = [tokenizer.encode(text) for text in rollouts.completions]
    few = slice(0, min(len(rollouts), 4 * BATCH))  # whole logits are heavy
    logprobs = _bench_logprobs(
        prompts[few], completions[few], repeats, width=width, layers=layers, vocabulary=vocabulary
    )
    padded = sum(max(some) * len(some) for some in _batches(lengths))
    return {
        "data": {
            "source": "random words" if data is None else str(data),
            "rows": len(rollouts),
            "tokens": sum(lengths),
            "longest": max(lengths),
            "padding": 1 - sum(lengths) / padded,
        },
        "models": {"width": width, "layers": layers, "prm_weights": weights, "vocabulary": vocabulary},
        "threads": torch.get_num_threads(),
        "scores": scores,
        "logprobs": logprobs,
    }


def _bench_scores(prm: PRM, rollouts: Rollouts, repeats: int) -> tuple[list[int], dict[str, Any]]:
    """The lengths of the inputs, and both ways to score them."""
    reader = prm.reader
    assert rollouts.steps is not None
    steps = [
        [text[start:end].strip() for start, end in spans]
        for text, spans in zip(rollouts.completions, rollouts.steps, strict=True)
    ]

    def plain() -> list[float]:
        found: list[float] = []
        inputs = [one for p, s in zip(rollouts.prompts, steps, strict=True) for one in reader.layout.inputs(p, s)]
        for some in _batches(inputs):
            ids, mask = _padded([one.ids for one in some])
            with torch.inference_mode():
                logits = reader.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
            for row, one in enumerate(some):
                found += logits[row, one.marks].softmax(-1)[:, 1].tolist()
        return found

    def ours() -> list[float]:
        return [span.score for spans in prm.score(rollouts) for span in spans]

    lengths = [len(one.ids) for p, s in zip(rollouts.prompts, steps, strict=True) for one in reader.layout.inputs(p, s)]
    gap = max(abs(a - b) for a, b in zip(plain(), ours(), strict=True))
    return lengths, {**_compared({"plain": plain, "ours": ours}, repeats, sum(lengths)), "greatest_difference": gap}


def _bench_logprobs(
    prompts: list[list[int]], completions: list[list[int]], repeats: int, **sizes: int
) -> dict[str, Any]:
    """Both ways to read log-probabilities, and the peak of each in a process of its own."""
    model = causal_model(sizes["vocabulary"], width=sizes["width"], layers=sizes["layers"])
    plain, ours = _whole(model, prompts, completions), _chunked(model, prompts, completions)
    gap = max(float((a - b).abs().max()) for a, b in zip(plain(), ours(), strict=True) if len(a))
    real = sum(map(len, prompts)) + sum(map(len, completions))
    options = {"prompts": prompts, "completions": completions, **sizes}
    peaks = {name: peak_memory(__name__, f"{name}_work", options) for name in ("plain", "ours")}
    return {
        **_compared({"plain": plain, "ours": ours}, repeats, real),
        "greatest_difference": gap,
        "rows": len(prompts),
        "peak_bytes": peaks,
        "peak_ratio": peaks["plain"] / peaks["ours"],
    }


def plain_work(prompts: list[list[int]], completions: list[list[int]], **sizes: int) -> Callable[[], Any]:
    """What is measured of whole logits."""
    return _whole(causal_model(sizes.pop("vocabulary"), **sizes), prompts, completions)


def ours_work(prompts: list[list[int]], completions: list[list[int]], **sizes: int) -> Callable[[], Any]:
    """What is measured of `sequence_logprobs`."""
    return _chunked(causal_model(sizes.pop("vocabulary"), **sizes), prompts, completions)


def _chunked(model: Any, prompts: list[list[int]], completions: list[list[int]]) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        with torch.inference_mode():
            return sequence_logprobs(model, prompts, completions)

    return run


def _whole(model: Any, prompts: list[list[int]], completions: list[list[int]]) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        found: list[Tensor] = []
        for some in _batches(list(zip(prompts, completions, strict=True))):
            ids, mask = _padded([prompt + completion for prompt, completion in some])
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                for row, (prompt, completion) in enumerate(some):
                    wanted = logits[row, len(prompt) - 1 : len(prompt) + len(completion) - 1].float()
                    picked = wanted.gather(-1, torch.tensor(completion, dtype=torch.long)[:, None]).squeeze(-1)
                    found.append(picked - wanted.logsumexp(-1))
        return found

    return run


def _compared(alternatives: dict[str, Callable[[], Any]], repeats: int, tokens: int) -> dict[str, Any]:
    times = paired_times(alternatives, repeats)
    return {
        "tokens_a_second": {name: tokens / spread(taken)["median"] for name, taken in times.items()},
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "ratio": spread([slow / fast for slow, fast in zip(times["plain"], times["ours"], strict=True)]),
    }


def _batches(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """In the order given, 8 at a time."""
    return [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask
