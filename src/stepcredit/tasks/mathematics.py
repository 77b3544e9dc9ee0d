"""Word and competition problems with a final answer, as a task to train and evaluate on."""

import random
from dataclasses import dataclass, field
from typing import ClassVar

from stepcredit.errors import InputError
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.math_answers import AnswerGrader
from stepcredit.tasks.math_problems import MathProblem, load_problems
from stepcredit.tasks.task import Example, Split


@dataclass(frozen=True)
class Mathematics:
    r"""Problems from files or the hub, graded on the final answer: exactly, by number, then by math-verify.

    Args:
        train: Hub name, folder or file of the training problems; see `load_problems` for what it reads.
        test: The same for the test problems.
        train_split: The split of a folder or hub dataset to train on.
        test_split: The split to test on.
        instruction: The system message for policies with a chat template.
        timeout_s: Seconds that one symbolic comparison may take.

    Degenerate cases:
        Asked for a split whose source is empty (""): an InputError that names the option.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "one.jsonl"
        ...     _ = path.write_text('{"question": "How much is 40 * 30?", "answer": "1200"}')
        ...     task = Mathematics(test=str(path))
        ...     example = task.examples("test")[0]
        >>> example.prompt, task.grade(example.reference, r"It is $\boxed{1{,}200}$.").outcome
        ('How much is 40 * 30?', 1.0)
    """

    name: ClassVar[str] = "math"
    endless: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ()
    train: str = ""
    test: str = ""
    train_split: str = "train"
    test_split: str = "test"
    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    timeout_s: float = 5.0
    _grader: AnswerGrader = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Makes the grader; its child process starts only when a symbolic comparison needs it."""
        object.__setattr__(self, "_grader", AnswerGrader(self.timeout_s))

    def examples(self, split: Split, count: int | None = None, *, seed: int = 0) -> list[Example]:
        """The problems of a split: test in the source's order, train shuffled by the seed."""
        source, part = (self.train, self.train_split) if split == "train" else (self.test, self.test_split)
        if not source:
            raise InputError(f"`{split}` must name the source of the {split} problems; got an empty name.")
        problems = load_problems(source, split=part, limit=count if split == "test" else None)
        if split == "train":
            random.Random(seed).shuffle(problems)  # noqa: S311 - reproducible order, no secret
        if count is not None and len(problems) < count:
            raise InputError(f"`count` must be at most the {len(problems)} problems of {source!r}; got {count}.")
        return [_example(problem) for problem in problems[:count]]

    def grade(self, reference: str, completion: str, *, finished: bool = True) -> Grade:
        """Grades the final answer; there are no steps."""
        return self._grader(completion, reference, finished=finished)


def _example(problem: MathProblem) -> Example:
    return Example(problem.id, problem.question, problem.answer)
