"""Laws of alignment: credit knows on which token a signal was."""

from collections.abc import Iterator

from stepcredit.batch import RolloutBatch
from stepcredit.lab.conform.golden import Golden
from stepcredit.lab.conform.law import Trial, Verdict
from stepcredit.lab.conform.signal import SIGNALS, covered_tokens, nothing_read

_NONE = "no batch that it can have has one signal a token"


def shift(trial: Trial) -> Verdict:
    """Rolling the signal by one token changes credit."""
    if (verdict := nothing_read("shift", trial)) is not None:
        return verdict
    tried = 0
    for golden, name in _by_token(trial):
        moved = trial.moved(golden, golden.batch.replace(**{name: getattr(golden.batch, name).roll(1, 1)}))
        if moved is None:
            continue
        tried += 1
        if moved.any():
            apart = float(moved.max())
            return Verdict("shift", "holds", f"{apart:.2g} apart in {golden}", apart, str(golden), tried)
    if not tried:
        return Verdict("shift", "n.a.", _NONE)
    fact = f"the same credit wherever in a response the signal stands, on {tried} batches"
    return Verdict("shift", "BROKEN", fact, 0.0, None, tried)


def edges(trial: Trial) -> Verdict:
    """The first and the last token's signal both count.

    Two rollouts of a group exchange their values there: the pool of values stays, so that what changes is what the
    token's own value does.
    """
    if (verdict := nothing_read("edges", trial)) is not None:
        return verdict
    seen, tried = {"first": 0.0, "last": 0.0}, 0
    for golden, name in _by_token(trial):
        for pair in _pairs(golden.batch):
            for edge, at in (("first", 0), ("last", -1)):
                moved = trial.moved(golden, _exchanged(golden.batch, name, pair, at))
                if moved is not None:
                    tried += 1
                    seen[edge] = max(seen[edge], float(moved.max()))
        if all(seen.values()):
            break
    if not tried:
        return Verdict("edges", "n.a.", _NONE)
    for edge, apart in seen.items():
        if apart == 0:
            return Verdict("edges", "BROKEN", f"the signal of the {edge} token changes nothing", 0.0, None, tried)
    return Verdict("edges", "holds", f"at least {min(seen.values()):.2g} apart", min(seen.values()), None, tried)


def place(trial: Trial) -> Verdict:
    """Rollouts that exchange their signals at one token change from there on, or up to there, or there alone.

    So it is with every sum of what comes after, or came before. Where a statistic brings the change to every token
    there is nothing to say.
    """
    if (verdict := nothing_read("place", trial)) is not None:
        return verdict
    tried = 0
    for golden, name in _by_token(trial):
        last = golden.batch.response_mask.shape[1] - 1
        for pair, at in ((pair, at) for pair in _pairs(golden.batch) for at in range(1, last)):
            moved = trial.moved(golden, _exchanged(golden.batch, name, pair, at))
            touched = [] if moved is None else moved[pair[0]].nonzero().flatten().tolist()
            if moved is None or not touched or len(touched) == last + 1:
                continue
            tried += 1
            if at not in (touched[0], touched[-1]):
                fact = f"the signal of token {at} changes tokens {touched[0]} to {touched[-1]} in {golden}"
                return Verdict("place", "BROKEN", fact, float(moved.max()), str(golden), tried)
    if not tried:
        return Verdict("place", "n.a.", "a signal changes every token's credit")
    return Verdict("place", "holds", f"in its place in {tried} exchanges", None, None, tried)


def _by_token(trial: Trial) -> Iterator[tuple[Golden, str]]:
    """Batches with one signal a token and responses of one length, and the signals on them that are read."""
    for golden in trial.goldens:
        batch = golden.batch
        token_level = batch.step_ids is None or bool((batch.step_ids[0].diff() == 1).all())
        whole = bool(covered_tokens(batch).all()) and batch.response_mask.shape[1] > 3 and batch.row_mask is None
        if token_level and whole and _pairs(batch):
            for name in SIGNALS:
                if getattr(batch, name) is not None and trial.reads(name):
                    yield golden, name


def _pairs(batch: RolloutBatch) -> list[list[int]]:
    """Two correct rollouts of a group, and two with different rewards; none where each is alone."""
    rows = range(len(batch))
    correct = [True] * len(batch) if batch.correct is None else batch.correct.tolist()
    rewards = [0.0] * len(batch) if batch.rewards is None else batch.rewards.tolist()
    pairs = [[i, j] for i in rows for j in rows if i < j and bool(batch.group_ids[i] == batch.group_ids[j])]
    kinds = (
        [p for p in pairs if correct[p[0]] and correct[p[1]]],
        [p for p in pairs if rewards[p[0]] != rewards[p[1]]],
    )
    return [found[0] for found in (*kinds, pairs if not any(kinds) else []) if found]


def _exchanged(batch: RolloutBatch, name: str, pair: list[int], at: int) -> RolloutBatch:
    """The pair's values of a signal at one token, exchanged."""
    x = getattr(batch, name).clone()
    x[pair, at] = x[pair[::-1], at]
    return batch.replace(**{name: x})
