"""Labels for a policy's own solutions: by Monte-Carlo rollouts from every step, or by the task's ground truth."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from stepcredit.batch import Span
from stepcredit.errors import InputError
from stepcredit.options import Options, option
from stepcredit.runs.grouped import sample_groups
from stepcredit.runs.policies import Policy
from stepcredit.runs.prompts import encode_prompt
from stepcredit.signals.offsets import token_offsets
from stepcredit.tasks import Example, Grade, SearchTask, Task, segment
from stepcredit.tasks.labeled_steps import LabeledSteps
from stepcredit.tasks.segmentation import Scheme


@dataclass(frozen=True)
class Sampling(Options):
    """How solutions, and rollouts from their steps, are sampled.

    Attributes:
        samples: Solutions a problem.
        rollouts_per_step: Rollouts from every step but a solution's last.
        temperature: Divides the logits.
        max_new_tokens: Limit of a solution; a rollout has what its beginning leaves of it.
        batch_size: Completions at a time.
        seed: Chooses the random numbers.

    Raises:
        InputError: A value out of its range.
    """

    samples: int = option(4, at_least=1)
    rollouts_per_step: int = option(8, at_least=1)
    temperature: float = option(1.0, above=0)
    max_new_tokens: int = option(256, at_least=1)
    batch_size: int = option(256, at_least=1)
    seed: int = option(0, at_least=0)


@dataclass(frozen=True)
class Solution:
    """One sampled solution.

    Attributes:
        example: Its problem.
        sample: Which of the problem's solutions.
        prompt_ids: What the policy was given.
        ids: What it wrote, without the end of sequence.
        text: The same as text.
        finished: It ended by itself.
        grade: The task's verdict.
        steps: Where its steps are in the text; the task's own where it grades steps.
    """

    example: Example
    sample: int
    prompt_ids: list[int]
    ids: list[int]
    text: str
    finished: bool
    grade: Grade
    steps: tuple[Span, ...]

    def labeled(self, labels: Sequence[float | None]) -> LabeledSteps:
        """The solution with these labels."""
        texts = tuple(self.text[start:end] for start, end in self.steps)
        name = f"{self.example.id}/{self.sample}"
        return LabeledSteps(name, self.example.prompt, texts, tuple(labels), self.example.id)


@dataclass
class LabelReport:
    """What making labels took.

    Attributes:
        solutions: Labeled ones.
        stepless: Sampled ones without any step, which are left out.
        right: The share of the labeled solutions whose answer is right.
        steps: Labels.
        rollouts: Rollouts from steps.
        tokens: Sampled in these rollouts, ends of sequence included.
        reencoded: Steps that end inside a token: their rollouts begin from the text's own ids, not the sampled ones.
        seconds: Wall time of the labeling, without the sampling of the solutions.
    """

    solutions: int = 0
    stepless: int = 0
    right: float = 0.0
    steps: int = 0
    rollouts: int = 0
    tokens: int = 0
    reencoded: int = 0
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def sample_solutions(
    policy: Policy, task: Task, examples: Sequence[Example], sampling: Sampling, *, by: Scheme = "lines"
) -> list[Solution]:
    """Samples and grades solutions of every problem.

    Args:
        policy: What samples.
        task: Grades.
        examples: Problems with ids of their own.
        sampling: How.
        by: How to cut the steps where the task has none of its own.

    Returns:
        Problem after problem; the same arguments give the same solutions on the same machine. Torch's random state is
        left as it was.

    Raises:
        InputError: The task searches, or ``max_new_tokens`` and the prompts do not fit the policy's positions.
    """
    if isinstance(task, SearchTask):
        raise InputError(f"`task` must be one without searches, which nothing answers here; got {task.name}.")
    prompts = {example.id: encode_prompt(policy.tokenizer, task, example.prompt) for example in examples}
    _check_room(policy, max(map(len, prompts.values()), default=0) + sampling.max_new_tokens)
    jobs = [(example, sample) for example in examples for sample in range(sampling.samples)]
    made: list[Solution] = []
    with _sampling(policy, sampling.seed):
        for first in range(0, len(jobs), sampling.batch_size):
            batch = jobs[first : first + sampling.batch_size]
            rows = _sample(policy, [prompts[example.id] for example, _ in batch], sampling, sampling.max_new_tokens)
            for (example, sample), row in zip(batch, rows, strict=True):
                ids, text, finished = _read(policy, row)
                grade = task.grade(example.reference, text, finished=finished)
                steps = tuple(Span(start, end) for start, end, _ in grade.steps) or tuple(segment(text, by))
                made.append(Solution(example, sample, prompts[example.id], ids, text, finished, grade, steps))
    return made


def task_labels(solutions: Sequence[Solution]) -> tuple[list[LabeledSteps], LabelReport]:
    """The task's own verdict on every step.

    Raises:
        InputError: The task grades answers alone.
    """
    begun = time.perf_counter()
    if solutions and not any(solution.grade.steps for solution in solutions):
        raise InputError("`labels` must be 'monte-carlo' for a task that grades no steps; got 'task'.")
    kept = [solution for solution in solutions if solution.grade.steps]
    labeled = [solution.labeled([score for _, _, score in solution.grade.steps]) for solution in kept]
    return labeled, _report(solutions, kept, begun)


def monte_carlo_labels(
    policy: Policy,
    task: Task,
    solutions: Sequence[Solution],
    sampling: Sampling,
    *,
    target: Literal["soft", "hard"] = "soft",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[LabeledSteps], LabelReport]:
    """Labels a step by what becomes of its solution when the policy goes on from there.

        soft    the share of the rollouts from this step whose answer is right
        hard    1 if any of them is right, else 0

    The last step of a solution leaves nothing to roll out: its label is whether the solution's own answer is right.

    Args:
        policy: What goes on; the one that wrote the solutions, or another with the same tokenizer.
        task: Grades the answers; its verdicts on steps are not looked at.
        solutions: From `sample_solutions`.
        sampling: How.
        target: Which of the two.
        progress: Called with the rollouts done and their number.

    Returns:
        The labeled solutions, in order, and what it took. Torch's random state is left as it was.

    Degenerate cases:
        A rollout that meets the limit of ``max_new_tokens``, its beginning included, is graded as it stands, cut. A
        solution without steps (an empty one) is left out and counted.

    Reference:
        Wang et al., Math-Shepherd, arXiv 2312.08935, section 3.3 (soft and hard estimation); departs from it in the
        last step.
    """
    begun = time.perf_counter()
    kept = [solution for solution in solutions if solution.steps]
    report = _report(solutions, kept, begun)
    jobs: list[tuple[int, int, list[int]]] = []
    for index, solution in enumerate(kept):
        offsets = token_offsets(policy.tokenizer, solution.ids, solution.text)
        for step, span in enumerate(solution.steps[:-1]):
            beginning = _beginning(solution.ids, offsets, span.end)
            if beginning is None:
                report.reencoded += 1
                text = solution.text[: span.end]
                beginning = list(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
            jobs.append((index, step, beginning))
    right = _roll_out(policy, task, kept, jobs, sampling, report, progress)
    labels: list[list[float | None]] = [[None] * len(solution.steps) for solution in kept]
    for (index, step, _), count in zip(jobs, right, strict=True):
        labels[index][step] = count / sampling.rollouts_per_step if target == "soft" else float(count > 0)
    for row, solution in zip(labels, kept, strict=True):
        row[-1] = float(solution.grade.correct)
    report.seconds = time.perf_counter() - begun
    return [solution.labeled(row) for solution, row in zip(kept, labels, strict=True)], report


def _roll_out(
    policy: Policy,
    task: Task,
    solutions: Sequence[Solution],
    jobs: Sequence[tuple[int, int, list[int]]],
    sampling: Sampling,
    report: LabelReport,
    progress: Callable[[int, int], None] | None,
) -> list[int]:
    """How many of the rollouts from each step are right."""
    each = sampling.rollouts_per_step
    at_once = max(1, sampling.batch_size // each)
    right = [0] * len(jobs)
    order = sorted(range(len(jobs)), key=lambda job: -len(jobs[job][2]))  # like lengths together
    with _sampling(policy, sampling.seed + 1):  # other numbers than the solutions' own
        for first in range(0, len(order), at_once):
            part = order[first : first + at_once]
            beginnings = [solutions[jobs[job][0]].prompt_ids + jobs[job][2] for job in part]
            room = sampling.max_new_tokens - min(len(jobs[job][2]) for job in part)
            rows = _sample(policy, [ids for ids in beginnings for _ in range(each)], sampling, max(1, room))
            for place, row in enumerate(rows):
                job = part[place // each]
                index, _, beginning = jobs[job]
                row = row[: max(1, sampling.max_new_tokens - len(beginning))]
                _, text, finished = _read(policy, beginning + row)
                right[job] += task.grade(solutions[index].example.reference, text, finished=finished).correct
                report.tokens += len(row)
            report.rollouts += len(rows)
            if progress is not None:
                progress(report.rollouts, len(jobs) * each)
    return right


def _report(sampled: Sequence[Solution], kept: Sequence[Solution], begun: float) -> LabelReport:
    if not kept:
        raise InputError("`solutions` must have one with a step; got none to label.")
    right = sum(solution.grade.correct for solution in kept) / len(kept)
    steps = sum(len(solution.steps) for solution in kept)
    seconds = time.perf_counter() - begun
    return LabelReport(len(kept), len(sampled) - len(kept), right, steps, seconds=seconds)


def _beginning(ids: list[int], offsets: Sequence[tuple[int, int]], end: int) -> list[int] | None:
    """The ids that wrote the text up to ``end``; None where a token writes on both sides of it."""
    count = sum(1 for _, stop in offsets if stop <= end)
    if any(start < end for start, _ in offsets[count:]) or any(stop > end for _, stop in offsets[:count]):
        return None
    return ids[:count]


def _sample(policy: Policy, prompts: list[list[int]], sampling: Sampling, limit: int) -> list[list[int]]:
    return sample_groups(
        policy.model, prompts, eos_ids=sorted(_ends(policy)), max_new_tokens=limit,
        temperature=sampling.temperature, pad_id=policy.tokenizer.pad_token_id,
    )  # fmt: skip


def _read(policy: Policy, row: list[int]) -> tuple[list[int], str, bool]:
    """What was written: its ids without an end, their text, and whether it ended."""
    finished = bool(row) and row[-1] in _ends(policy)
    ids = row[:-1] if finished else row
    text = policy.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return ids, text, finished


def _ends(policy: Policy) -> frozenset[int]:
    config = getattr(policy.model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    return frozenset({*(named if isinstance(named, list) else [named]), policy.tokenizer.eos_token_id} - {None})


def _check_room(policy: Policy, tokens: int) -> None:
    positions = getattr(policy.model.config, "max_position_embeddings", None)
    if positions is not None and tokens > positions:
        where = f"the policy's {positions} positions with its prompt"
        raise InputError(f"`max_new_tokens` must fit {where}; got {tokens} in all.")


@contextmanager
def _sampling(policy: Policy, seed: int) -> Iterator[None]:
    device = policy.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
