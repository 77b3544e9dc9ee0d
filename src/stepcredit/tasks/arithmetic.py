"""The built-in task: a labelled running total modulo m, exact to grade step by step, learnable from scratch.

    prompt      a:3b:+5c:*2d:-7       start at 3; add 5; times 2; minus 7
    solution    b:3+5=8               one reduction a line: label, running total, operation, new total
                c:8*2=6
                d:6-7=9
                answer: 9

Every line ends in a newline, the answer line too. The labels turn "which operation is next" into a look-up, so a
very small model learns the form and what is left to learn is the arithmetic. The number of operations is the
difficulty; the chance of a blind guess is 1 / modulus.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import ClassVar

from stepcredit.batch.ranges import ScoredRanges
from stepcredit.errors import InputError
from stepcredit.tasks.grading import Grade
from stepcredit.tasks.reductions import applied, is_number, is_reduction, result
from stepcredit.tasks.task import Example, Split

LABELS = "abcdefghijklmnopqrstuvwxyz"
STEP_KINDS = ("one", "merged", "repeated", "alien", "malformed", "answer")

_TEST_SEED = 0
_TRAIN_SEEDS = 2**32  # a run's training problems start at (1 + its seed) times this

_PROMPT = re.compile(r"a:(0|[1-9][0-9]{0,3})((?:[a-z]:[+*-](?:0|[1-9][0-9]{0,3}))+)")
_OPERATION = re.compile(r"([a-z]):([+*-])([0-9]+)")
_ANSWER = re.compile(r"answer: (0|[1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Problem:
    """One arithmetic problem.

    Attributes:
        prompt: What the model reads.
        answer: The gold final total, as the model must write it.
        start: The first total.
        operations: ``(operator, operand)`` in order; operators are ``+``, ``-``, ``*``.
    """

    prompt: str
    answer: str
    start: int
    operations: tuple[tuple[str, int], ...]

    @cached_property
    def written(self) -> tuple[str, ...]:
        """The operations as lines write them."""
        return tuple(f"{op}{y}" for op, y in self.operations)


@dataclass(frozen=True)
class Arithmetic:
    r"""The running-total task.

    Args:
        operations: Operations a problem, 1 to 25 (one label each, ``b`` to ``z``).
        modulus: Totals and operands lie in ``[0, modulus)``; 2 to 1000. A guess is right 1 time in ``modulus``.

    Raises:
        InputError: An argument is out of its range.

    Degenerate cases:
        ``operations=1`` has ``3 * modulus**2`` problems in all, so seeds soon repeat one.

    Example:
        >>> task = Arithmetic()
        >>> problem = task.parse("a:3b:+5c:*2d:-7")
        >>> print(task.solution(problem), end="")
        b:3+5=8
        c:8*2=6
        d:6-7=9
        answer: 9
        >>> grade = task.grade(problem, "b:3+5=8\nc:8*2=7\nd:7-7=0\nanswer: 0\n")
        >>> grade.outcome, [step.score for step in grade.steps]
        (0.0, [1.0, 0.0, 0.0, 0.0])
    """

    name: ClassVar[str] = "arithmetic"
    endless: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = STEP_KINDS
    measures: ClassVar[tuple[str, ...]] = ()
    instruction: ClassVar[str] = ""
    operations: int = 6
    modulus: int = 10

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, low, high in (("operations", 1, len(LABELS) - 1), ("modulus", 2, 1000)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"`{name}` must be a whole number from {low} to {high}; got {value!r}.")

    def problem(self, seed: int) -> Problem:
        """The problem of a seed, the same on every machine: operators and operands are uniform."""
        rng = random.Random(seed)  # noqa: S311 - reproducible sampling, no secret
        start = rng.randrange(self.modulus)
        drawn = tuple((rng.choice("+-*"), rng.randrange(self.modulus)) for _ in range(self.operations))
        prompt = f"a:{start}" + "".join(f"{LABELS[i + 1]}:{op}{y}" for i, (op, y) in enumerate(drawn))
        return self._problem(prompt, start, drawn)

    def examples(self, split: Split, count: int | None = None, *, seed: int = 0) -> list[Example]:
        r"""Problems as a policy meets them: the prompt and a newline; the reference is the prompt itself.

        Args:
            split: Training and test problems come from disjoint seeds (two seeds may still draw the same problem).
            count: How many, at least 1.
            seed: Chooses the training problems; the test problems are always the same.

        Raises:
            InputError: No count: this task never ends.

        Example:
            >>> Arithmetic(operations=2).examples("test", 1)
            [Example(id='test-0', prompt='a:6b:-0c:-8\n', reference='a:6b:-0c:-8')]
        """
        if count is None or count < 1:
            raise InputError(f"`count` must be at least 1 for {self.name}, which has no end; got {count}.")
        first = _TEST_SEED if split == "test" else _TRAIN_SEEDS * (1 + seed)
        prompts = [self.problem(first + i).prompt for i in range(count)]
        return [Example(f"{split}-{i}", prompt + "\n", prompt) for i, prompt in enumerate(prompts)]

    def parse(self, prompt: str) -> Problem:
        """Reads a prompt back; any number of operations is accepted, so that difficulties can be mixed.

        Raises:
            InputError: The text is not a prompt of this task and modulus.
        """
        match = _PROMPT.fullmatch(prompt)
        parts = _OPERATION.findall(match[2]) if match else []
        if match is None or [label for label, _, _ in parts] != [*LABELS[1 : len(parts) + 1]]:
            raise InputError(f"`prompt` must look like 'a:3b:+5c:*2'; got {prompt[:80]!r}.")
        operations = tuple((op, int(y)) for _, op, y in parts)
        numbers = [int(match[1]), *(y for _, y in operations)]
        if max(numbers) >= self.modulus:
            raise InputError(f"`prompt` must have numbers below modulus {self.modulus}; got {max(numbers)}.")
        return self._problem(prompt, numbers[0], operations)

    def solution(self, problem: Problem) -> str:
        """The gold chain: one operation a line, then the answer line."""
        return self.sample_solution(problem, 0, slip=0.0, product_bug=0.0, merge=0.0, merge_slip=0.0, repeat=0.0)

    def sample_solution(
        self,
        problem: Problem,
        seed: int,
        *,
        slip: float = 0.06,
        product_bug: float = 0.5,
        merge: float = 0.15,
        merge_slip: float = 0.4,
        repeat: float = 0.15,
    ) -> str:
        """A noisy tutor's chain, well formed but often wrong: rollouts without a model, or demonstrations.

        The tutor carries its own totals, so one error spoils what follows; its answer line states its last total.
        The default rates leave reinforcement learning room to gain and a process signal room to be gamed: about
        1 chain in 4 of six operations modulo 10 ends right (0.26), 1 in 5 of eight.

        Args:
            problem: The problem to solve.
            seed: Chooses the noise; independent of the problem's own seed.
            slip: Probability that a line's result is off by a random amount.
            product_bug: Probability that a line with a product is one too high (a systematic misconception).
            merge: Probability that a line takes two operations at once.
            merge_slip: Probability that a merged line's result is off by a random amount.
            repeat: Probability that a line is written again (and again: below 1).

        Returns:
            The completion text; always in the task's form.

        Raises:
            InputError: A probability is outside [0, 1], or ``repeat`` is 1.

        Degenerate cases:
            All rates 0: exactly ``solution(problem)``.

        Example:
            >>> task = Arithmetic(operations=2)
            >>> problem = task.parse("a:3b:+5c:*2")
            >>> print(task.sample_solution(problem, 0, slip=0, product_bug=1, merge=0, repeat=0), end="")
            b:3+5=8
            c:8*2=7
            answer: 7
        """
        rates = {"slip": slip, "product_bug": product_bug, "merge": merge, "merge_slip": merge_slip, "repeat": repeat}
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0 or (name == "repeat" and rate == 1.0):
                raise InputError(f"`{name}` must be a probability (`repeat` below 1); got {rate}.")
        rng = random.Random(f"{seed}:{problem.prompt}")  # noqa: S311 - reproducible sampling, no secret
        total, done, lines = problem.start, 0, []
        while done < len(problem.operations):
            count = 2 if done + 2 <= len(problem.operations) and rng.random() < merge else 1
            taken = problem.operations[done : done + count]
            done += count
            result = applied(total, taken, self.modulus)
            if count == 2 and rng.random() < merge_slip:
                result = (result + rng.randrange(1, self.modulus)) % self.modulus
            elif any(op == "*" for op, _ in taken) and rng.random() < product_bug:
                result = (result + 1) % self.modulus
            elif rng.random() < slip:
                result = (result + rng.randrange(1, self.modulus)) % self.modulus
            line = f"{LABELS[done]}:{total}{''.join(f'{op}{y}' for op, y in taken)}={result}\n"
            lines.append(line)
            while rng.random() < repeat:
                lines.append(line)
            total = result
        return "".join(lines) + f"answer: {total}\n"

    def grade(self, problem: Problem | str, completion: str, *, finished: bool = True) -> Grade:
        r"""Grades the answer, the form and every line, exactly.

        A step is one line with its newline; steps cover the whole completion. Its score is 1.0 while the prefix
        up to and including it is right and 0.0 from the first error on. Its kind says what the line is:

        - ``one``: takes the next operation from the running total (the total the model last claimed);
        - ``merged``: takes the next two or more operations at once;
        - ``repeated``: the same text as the reduction line before it; as right as that one was;
        - ``alien``: well formed, but another label, total or operation than comes next;
        - ``malformed``: not a line of this task (an answer line before the last line, too);
        - ``answer``: the last line, ``answer: N``. Right when every operation was taken and N is the gold answer.

        Args:
            problem: The problem, or its prompt.
            completion: The exact text that the model wrote.
            finished: False where generation was cut by a length limit.

        Returns:
            The grade. ``outcome`` looks at the answer line alone: a lucky guess counts there, not in its step.
            ``format_ok`` asks for reductions of any sort, then an answer line, finished.

        Raises:
            InputError: A prompt string is not one of this task (the completion never raises).

        Degenerate cases:
            Empty text: no steps, outcome 0. A cut answer line (no newline, not finished) may lack digits and is
            no answer. Time is linear in the text.
        """
        problem = _parsed(self, problem) if isinstance(problem, str) else problem
        lines = completion.split("\n")
        cut = bool(lines[-1]) and not finished  # in its last line
        if not lines[-1]:
            lines.pop()
        stated = None if cut or not lines else _ANSWER.fullmatch(lines[-1])
        written, all_of_them = problem.written, len(problem.written)
        total, done, last, score = str(problem.start), 0, None, 1.0
        scores: list[float] = []
        kinds: list[str] = []
        for body in lines[:-1] if stated or cut else lines:
            kind, label = "", body[:1]
            then = LABELS.find(label)  # how many operations are done behind this line, as it says
            if body == last:
                kind = "repeated"  # if that line was wrong, the prefix is wrong already
            elif done < then <= all_of_them:
                if then == done + 1:
                    terms, value = written[done], result(total, written[done], self.modulus)
                else:
                    terms, value = "".join(written[done:then]), total
                    for term in written[done:then]:
                        value = result(value, term, self.modulus)
                head = f"{label}:{total}{terms}="
                right = body == head + value
                if right or (body.startswith(head) and is_number(body[len(head) :])):
                    kind = "one" if then == done + 1 else "merged"
                    last, total, done = body, value if right else body[len(head) :], then
                    score = score if right else 0.0
            if not kind:
                kind, score = ("alien", 0.0) if is_reduction(body) else ("malformed", 0.0)
                last = body if kind == "alien" else last
            scores.append(score)
            kinds.append(kind)
        answer = stated[1] if stated else None
        if stated:
            scores.append(score if answer == problem.answer and done == all_of_them else 0.0)
            kinds.append("answer")
        elif cut:
            scores.append(0.0)
            kinds.append("malformed")
        ends = list(accumulate([len(body) + 1 for body in lines]))
        ends[-1:] = [len(completion)] if lines else []
        format_ok = finished and stated is not None and len(kinds) > 1 and "malformed" not in kinds
        outcome = float(answer == problem.answer)
        reason = "no answer line" if answer is None else "right" if outcome else "wrong"
        return Grade(
            outcome, float(format_ok), format_ok, ScoredRanges(ends, scores), tuple(kinds), answer is not None, reason
        )

    def _problem(self, prompt: str, start: int, operations: tuple[tuple[str, int], ...]) -> Problem:
        return Problem(prompt, str(applied(start, operations, self.modulus)), start, operations)


@lru_cache(maxsize=4096)
def _parsed(task: Arithmetic, prompt: str) -> Problem:
    """A prompt read back, once for all rollouts of its group."""
    return task.parse(prompt)
