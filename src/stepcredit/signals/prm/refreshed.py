"""A process reward model that is trained again on the rollouts of the run that it scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from stepcredit.batch.rollouts import Rollouts
from stepcredit.errors import InputError
from stepcredit.options import option
from stepcredit.signals.prm.signal import PRM
from stepcredit.signals.prm.training import StepTraining, fit_length, train_steps

StepLabels = Callable[[Rollouts], Sequence[Sequence[float | None]]]


@dataclass
class _Memory:
    """The rollouts that the model has not been trained on yet, as inputs with labels, and how often it was asked."""

    inputs: list[tuple[list[int], list[int]]] = field(default_factory=list)
    labels: list[list[float | None]] = field(default_factory=list)
    updates: int = 0
    step_labels: StepLabels | None = None


@dataclass(frozen=True)
class RefreshedPRM(PRM):
    """A `PRM` that keeps up with the policy: every so many batches it is trained on the newest rollouts.

    The model must be a token classifier with 2 labels ("trl"), as ``stepcredit prm train`` makes. A training starts
    from the weights as they are, with an optimizer of its own.

    Attributes:
        every: Batches of rollouts from one training to the next.
        labels: "outcome": a step is as good as its rollout's outcome, which makes scores the chance to end right;
            "task": the task's own ground truth, where it has one.
        epochs: Passes over the kept rollouts, a training.
        learning_rate: The highest one.
        batch_size: Rollouts an update.
        kept: The most rollouts that are kept for a training, the newest ones.

    Raises:
        InputError: As for `PRM`.

    Reference:
        PURE (arXiv 2504.15275) and PRIME (arXiv 2502.01456) find that a fixed reward model is learned around; PRIME
        trains its own on outcomes, as "outcome" does here at step ends.
    """

    name: ClassVar[str] = "refreshed_prm"
    every: int = option(5, at_least=1)
    labels: Literal["outcome", "task"] = "outcome"
    epochs: int = option(1, at_least=1)
    learning_rate: float = option(1e-4, above=0)
    batch_size: int = option(32, at_least=1)
    kept: int = option(2048, at_least=1)
    _memory: _Memory = field(init=False, repr=False, compare=False, default_factory=_Memory)

    def bind(self, *, step_labels: StepLabels | None = None) -> None:
        """Takes from the run what "task" reads: labels for every step of rollouts, by the spans in ``steps``."""
        if self.labels == "task" and step_labels is None:
            raise InputError("`labels` must be 'outcome' for a task that grades no steps; got 'task'.")
        self._memory.step_labels = step_labels

    def update(self, rollouts: Rollouts, outcomes: Sequence[float]) -> dict[str, float]:
        """Keeps rollouts, and trains on what is kept when it is time.

        Args:
            rollouts: Must have ``steps``.
            outcomes: One a rollout; above 0 is right.

        Returns:
            Numbers to log; of a training, its loss in nats a step, and how many steps it was about.

        Raises:
            InputError: The rollouts have no steps, or "task" was asked for and nothing was bound.
        """
        if rollouts.steps is None:
            raise InputError("`rollouts` must have steps; got none. Segment the completions first.")
        memory = self._memory
        if self.labels == "outcome":
            labels: Any = [
                [float(outcome > 0)] * len(row) for outcome, row in zip(outcomes, rollouts.steps, strict=True)
            ]
        elif memory.step_labels is None:
            raise InputError("`labels` must be 'outcome' outside of a run with a task; got 'task'.")
        else:
            labels = memory.step_labels(rollouts)
        self._keep(rollouts, labels)
        memory.updates += 1
        if memory.updates % self.every or not any(y is not None for row in memory.labels for y in row):
            return {"kept": float(len(memory.inputs))}
        options = StepTraining(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, seed=memory.updates
        )
        model = self.reader.model.requires_grad_(True)
        found = train_steps(model, memory.inputs, memory.labels, options)
        model.requires_grad_(False)
        memory.inputs, memory.labels = [], []
        return {"kept": 0.0, "loss": found["loss"], "steps": found["steps"]}

    def state_dict(self) -> dict[str, Any]:
        """The weights, what is kept, and the count of batches."""
        memory = self._memory
        weights = {name: x.detach().cpu().clone() for name, x in self.reader.model.state_dict().items()}
        return {
            "weights": weights,
            "inputs": [[list(ids), list(marks)] for ids, marks in memory.inputs],
            "labels": [list(row) for row in memory.labels],
            "updates": memory.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.reader.model.load_state_dict(state["weights"])
        self._memory.inputs = [(list(ids), list(marks)) for ids, marks in state["inputs"]]
        self._memory.labels = [list(row) for row in state["labels"]]
        self._memory.updates = state["updates"]

    def _keep(self, rollouts: Rollouts, labels: Sequence[Sequence[float | None]]) -> None:
        """Adds rollouts as inputs, each step's label at its mark; steps of white space alone have neither."""
        layout, memory = self.reader.layout, self._memory
        rows = zip(rollouts.prompts, rollouts.completions, rollouts.steps or (), labels, strict=True)
        inputs, known = [], []
        for problem, text, spans, values in rows:
            kept = [(words, y) for (a, b), y in zip(spans, values, strict=True) if (words := text[a:b].strip())]
            if kept:
                inputs.append(layout.encode(problem, [words for words, _ in kept]))
                known.append([y for _, y in kept])
        length = self.max_length or self.reader.positions
        fitting, fitted, _ = fit_length(inputs, known, length)  # what does not fit has no score, so it needs no label
        memory.inputs = [*memory.inputs, *fitting][-self.kept :]
        memory.labels = [*memory.labels, *fitted][-self.kept :]
