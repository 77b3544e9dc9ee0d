"""A training study to show on a page: a note, a table, and the learning curves of a few arms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stepcredit.errors import InputError


@dataclass(frozen=True)
class Arm:
    """One of the runs that a study compares.

    Attributes:
        name: What the study calls it.
        curves: Metric -> its points (step, value), steps increasing; a value of None or nan is a gap in the line.
    """

    name: str
    curves: Mapping[str, Sequence[tuple[int, float | None]]]


@dataclass(frozen=True)
class Study:
    """What a page says of a study; all of it is shown as it is given.

    Attributes:
        note: What the reader must know first, in plain text.
        columns: The heads of the table; without any there is no table.
        rows: Its rows, one cell a column. A row that begins with an arm's name carries that arm's line style.
        arms: The runs, in the order of the legend.
        units: Metric -> its unit, in words; a metric may have none.

    Raises:
        InputError: The table is ragged, two arms share a name, steps do not increase, or a unit has no metric.
    """

    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    arms: Sequence[Arm]
    units: Mapping[str, str]

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(
                    f"`rows` must have one cell a column, {len(self.columns)}; got {len(row)} in row {i + 1}."
                )
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise InputError(f"`arms` must have different names; got {names}.")
        for arm in self.arms:
            for metric, points in arm.curves.items():
                for (step, _), (after, _) in pairwise(points):
                    if step >= after:
                        where = f"{metric!r} of {arm.name!r}"
                        raise InputError(f"`arms` must have increasing steps; got {after} after {step} in {where}.")
        unknown = [metric for metric in self.units if metric not in self.metrics()]
        if unknown:
            raise InputError(f"`units` must name curves of the arms, {', '.join(self.metrics())}; got {unknown[0]!r}.")

    def metrics(self) -> list[str]:
        """The names of the curves, in the order in which the arms bring them."""
        return list(dict.fromkeys(metric for arm in self.arms for metric in arm.curves))


def study_data(study: Study) -> dict[str, Any]:
    """The study as plain values for the page; numbers have six digits.

    Example:
        >>> arm = Arm("a", {"loss": [(1, 0.123456789), (2, float("nan")), (3, float("inf"))]})
        >>> study_data(Study("", [], [], [arm], {}))["charts"][0]["lines"]
        [{'arm': 0, 'points': [[1, 0.123457], [2, None], [3, '∞']]}]
    """
    steps = [int(step) for arm in study.arms for points in arm.curves.values() for step, _ in points]
    return {
        "note": study.note,
        "columns": list(study.columns),
        "rows": [list(row) for row in study.rows],
        "arms": [arm.name for arm in study.arms],
        "steps": [min(steps, default=0), max(steps, default=0)],
        "charts": [
            {
                "name": metric,
                "unit": study.units.get(metric, ""),
                "lines": [
                    {"arm": i, "points": [[int(step), _value(x)] for step, x in arm.curves[metric]]}
                    for i, arm in enumerate(study.arms)
                    if metric in arm.curves
                ],
            }
            for metric in study.metrics()
        ],
    }


def _value(x: float | None) -> float | str | None:
    """A number to draw; None for a gap; an infinity, which is no number to draw, as the sign to print."""
    if x is None or math.isnan(x):
        return None
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"  # noqa: RUF001
    return float(f"{x:.6g}") + 0.0  # no -0
