"""Laws of form and of the mask: what is returned, and what must not be read."""

from collections.abc import Iterator

import torch
from torch import Tensor

from stepcredit.batch import RolloutBatch
from stepcredit.lab.conform.golden import Golden, counted, padded_by, tensors, with_tokens
from stepcredit.lab.conform.law import Trial, Twin, Verdict, agreement, greatest, invariance, one_line
from stepcredit.lab.peers import UnsupportedError

NAN = float("nan")


def answers(trial: Trial) -> Verdict:
    """Every batch gets credit; what its trainer can never hand it is left out, what raises is not."""
    found = {golden: trial.credit(golden) for golden in trial.goldens}
    errors = {golden: one for golden, one in found.items() if isinstance(one, Exception)}
    raised = {golden: one for golden, one in errors.items() if not isinstance(one, UnsupportedError)}
    without = len(errors) - len(raised)
    tried = len(found) - without
    if raised:
        golden, error = next(iter(raised.items()))
        fact = f"raised {one_line(error)} in {golden}"
        return Verdict(
            "answers", "BROKEN", fact + (f", and {len(raised) - 1} more" if len(raised) > 1 else ""), tried=tried
        )
    if not tried:
        return Verdict("answers", "n.a.", str(next(iter(errors.values()))))
    note = f"; {without} that its trainer cannot have: {next(iter(errors.values()))}" if without else ""
    return Verdict("answers", "holds", f"{tried} batches{note}", tried=tried)


def finite_and_detached(trial: Trial) -> Verdict:
    """Finite numbers without a gradient; a batch's tensors carry none, but a target may have parameters."""
    tried = 0
    for golden, _ in trial.credited():
        credit, tried = trial.target(golden.batch), tried + 1
        if not bool(credit.isfinite().all()):
            fact = f"{int((~credit.isfinite()).sum())} numbers not finite in {golden}"
            return Verdict("form", "BROKEN", fact, None, str(golden), tried)
        if credit.requires_grad:
            fact = "carries a gradient: the loss would train through it"
            return Verdict("form", "BROKEN", fact, None, str(golden), tried)
    return Verdict("form", "holds", f"finite and detached on {tried} batches", None, None, tried)


def zero_off_mask(trial: Trial) -> Verdict:
    """Exactly 0 on padding, tool output and rows that do not count."""
    apart, where, tried = 0.0, "", 0
    for golden, _ in trial.credited():
        off = greatest(trial.target(golden.batch)[~counted(golden.batch)])
        tried += 1
        if off > apart:
            apart, where = off, str(golden)
    return agreement("zero", apart, where, tried, broken=apart > 0)


def pure(trial: Trial) -> Verdict:
    """The same on every call, and the batch left as it was."""
    tried = 0
    for golden, credit in trial.answered():
        before = {name: x.clone() for name, x in tensors(golden.batch).items()}
        again = trial.on(golden.batch)
        tried += 1
        written = [name for name, x in tensors(golden.batch).items() if not torch.equal(x, before[name])]
        if written:
            return Verdict("pure", "BROKEN", f"writes to `{written[0]}` of {golden}", None, str(golden), tried)
        apart = greatest(again - credit)
        if apart != 0:
            return agreement("pure", apart, str(golden), tried, broken=True)
    return agreement("pure", 0.0, "", tried, broken=False)


def _more_padding(golden: Golden) -> Iterator[Twin]:
    batch = golden.batch
    yield Twin(padded_by(batch, 5), lambda x: x[:, :-5], lambda x: x)


def _garbage(golden: Golden) -> Iterator[Twin]:
    """What stands off the mask, and on rows that do not count, is replaced by what cannot be read."""
    batch = golden.batch
    kept = counted(batch)
    for junk in (NAN, 1e6):
        fields = {
            name: torch.where(kept, x, junk)
            for name, x in tensors(batch).items()
            if x.is_floating_point() and x.ndim == 2
        }
        if batch.row_mask is not None:
            rows = {name: x for name, x in tensors(batch).items() if x.is_floating_point() and x.ndim == 1}
            fields |= {name: torch.where(batch.row_mask, x, junk) for name, x in rows.items()}
        yield Twin(batch.replace(**fields), lambda x: x, lambda x: x)


def _observation(golden: Golden) -> Iterator[Twin]:
    """Four masked tokens before the last column, as if a tool had answered."""
    for at in {1, golden.batch.response_mask.shape[1] // 2}:
        if at >= golden.batch.response_mask.shape[1]:
            continue

        def widen(x: Tensor, fill: float, at: int = at) -> Tensor:
            return torch.cat([x[:, :at], x.new_full((len(x), 4), fill), x[:, at:]], 1)

        # in rows that have ended the span is padding: the mask is False there in any case
        yield Twin(
            with_tokens(golden.batch, widen),
            lambda x, at=at: torch.cat([x[:, :at], x[:, at + 4 :]], 1),  # type: ignore[misc]
            lambda x: x,
        )


def packed_layout(trial: Trial) -> Verdict:
    """The packed layout gets the padded one's credit."""
    if trial.target.estimator is None:
        return Verdict("packed", "n.a.", "takes [batch, time] alone")

    def twins(golden: Golden) -> Iterator[Twin]:
        batch = golden.batch
        real = batch.response_mask.flip(1).cummax(1).values.flip(1)
        values = {name: x[real] for name, x in tensors(batch).items() if x.ndim == 2}
        rows = {name: x for name, x in tensors(batch).items() if x.ndim == 1 and name not in ("group_ids", "rewards")}
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), real.sum(1).cumsum(0)])
        flat = RolloutBatch.from_packed(
            values, cu_seqlens, batch.group_ids, batch.rewards, **rows, extra_rewards=batch.extra_rewards
        )
        yield Twin(flat, lambda x: x, lambda x: x[real])

    return invariance("packed", twins)(trial)


padding = invariance("padding", _more_padding)
unread = invariance("unread", _garbage)
observation = invariance("observation", _observation)
