"""A few numbers about scored rollouts: how much credit there is, where it comes from, where there is none."""

from collections.abc import Sequence
from typing import Any

import torch

from stepcredit.lab.score import Scored


def summarize(scored: Sequence[Scored]) -> dict[str, Any]:
    """Plain values about one batch scored under one or more estimators.

    Args:
        scored: Results over one and the same batch, at least one.

    Returns:
        Counts of the batch, and for each estimator: the mean absolute credit of a response token; the groups in which
        no token has any; the rollouts whose tokens do not all share one credit; and each term's share of the summed
        absolute terms.
    """
    first = scored[0]
    counts = dict(first.counts)
    shown = ("excluded_rows", "groups", "singleton_groups")
    return {
        "rollouts": len(first.batch),
        "tokens": first.batch.layout.rows.size,
        **{name: counts[name] for name in shown},
        "ignored_fields": first.file.ignored,
        "counts": {name: n for result in scored for name, n in result.counts.items() if name not in shown},
        "estimators": [_estimator(result) for result in scored],
        "notes": [f"{type(result.estimator).__name__}: {note}" for result in scored for note in result.notes],
    }


def _estimator(result: Scored) -> dict[str, Any]:
    layout = result.batch.layout
    a = layout.pack(result.credit.advantages)
    everyone = result.batch.group_ids[layout.live]
    loud = everyone[layout.rows.sum(a.abs()) > 0]
    varied = layout.rows.sum((a != layout.rows.spread(a[layout.rows.first])).double()) > 0
    sizes = {name: float(layout.pack(term).abs().sum()) for name, term in result.credit.terms().items()}
    whole = sum(sizes.values()) or 1.0
    return {
        "estimator": result.name,
        "options": repr(result.estimator),
        "mean_abs_credit": float(a.abs().mean()) if a.numel() else 0.0,
        "silent_groups": len(set(everyone.tolist()) - set(loud.tolist())),
        "varied_rows": int(torch.count_nonzero(varied)),
        "shares": {name: size / whole for name, size in sizes.items()},
    }
