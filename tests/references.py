"""Plain-Python reference forms of the credit estimators: the specification as loops over lists. Every function takes a
batch as a dict of nested lists and returns one value per padded token. Nothing here is vectorized and nothing is shared
with the package, so that agreement between the two means something. Each rollout is first compacted to its response
tokens (a masked token is never read), rollouts without response tokens and excluded rows drop out, the credit is
computed group by group on what is left, and the result is scattered back into rows of zeros. A position is always an
index into the compacted response; "covered" tokens are those that carry a process signal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Batch = dict[str, Any]
Matrix = list[list[float]]
WHITEN_EPS = 1e-8
PRIME_EPS = 1e-6


# ---------------------------------------------------------------------------------------------- reading a batch


@dataclass
class Rollout:
    """One live rollout, compacted to its response tokens."""

    row: int
    tokens: list[int]  # where each response token sits in the padded row
    outcome: float | None = None
    format: float | None = None
    format_ok: bool = True
    extras: list[float] = field(default_factory=list)
    correct: bool = False
    signal: list[float | None] = field(default_factory=list)  # process signal a token, None where uncovered
    step_of: list[int] = field(default_factory=list)  # step a token belongs to, -1 where uncovered
    steps: list[tuple[int, float]] = field(default_factory=list)  # (position of the last token, signal), each step once
    old: list[float] = field(default_factory=list)
    ref: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)


def _given(batch: Batch, name: str) -> bool:
    return batch.get(name) is not None


def _need(batch: Batch, *names: str) -> None:
    for name in names:
        if not _given(batch, name):
            raise ValueError(f"this estimator reads `{name}`, which the batch does not have")


def _one_of(name: str, value: Any, *allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {allowed}; got {value!r}")


def _read_process(batch: Batch, rollout: Rollout) -> None:
    """Fill in the signal, the step of each token, and the steps with their ends."""
    i = rollout.row
    step_mode = _given(batch, "step_ids")
    for position, t in enumerate(rollout.tokens):
        covered = not _given(batch, "process_mask") or batch["process_mask"][i][t]
        if step_mode:
            covered = covered and batch["step_ids"][i][t] >= 0
        if not covered:
            rollout.signal.append(None)
            rollout.step_of.append(-1)
            continue
        rollout.signal.append(float(batch["process"][i][t]))
        rollout.step_of.append(batch["step_ids"][i][t] if step_mode else position)
    ends: dict[int, int] = {}
    for position, step in enumerate(rollout.step_of):
        if step >= 0:
            ends[step] = position  # the last one wins
    rollout.steps = [(end, float(batch["process"][i][rollout.tokens[end]])) for end in sorted(ends.values())]


def _read(batch: Batch) -> list[Rollout]:
    """All live rollouts, in row order."""
    rollouts = []
    for i, mask in enumerate(batch["mask"]):
        tokens = [t for t, sampled in enumerate(mask) if sampled]
        if not tokens or (_given(batch, "row_mask") and not batch["row_mask"][i]):
            continue
        rollout = Rollout(row=i, tokens=tokens)
        if _given(batch, "rewards"):
            rollout.outcome = float(batch["rewards"][i])
            rollout.correct = rollout.outcome > 0
        if _given(batch, "correct"):
            rollout.correct = bool(batch["correct"][i])
        if _given(batch, "format_rewards"):
            rollout.format = float(batch["format_rewards"][i])
            rollout.format_ok = rollout.format > 0
        if _given(batch, "format_ok"):
            rollout.format_ok = bool(batch["format_ok"][i])
        if _given(batch, "extra_rewards"):
            rollout.extras = [float(channel[i]) for channel in batch["extra_rewards"].values()]
        if _given(batch, "process"):
            _read_process(batch, rollout)
        if _given(batch, "old"):
            rollout.old = [float(batch["old"][i][t]) for t in tokens]
        if _given(batch, "ref"):
            rollout.ref = [float(batch["ref"][i][t]) for t in tokens]
        rollouts.append(rollout)
    return rollouts


def _groups(batch: Batch) -> list[list[Rollout]]:
    """Live rollouts by group label."""
    by_label: dict[Any, list[Rollout]] = {}
    for rollout in _read(batch):
        by_label.setdefault(batch["group"][rollout.row], []).append(rollout)
    return list(by_label.values())


def _scatter(batch: Batch, credit: Sequence[tuple[Rollout, Sequence[float]]], fill: Any = 0.0) -> list[list[Any]]:
    """Put per-response-token values back into padded rows."""
    out = [[fill] * len(mask) for mask in batch["mask"]]
    for rollout, values in credit:
        for t, value in zip(rollout.tokens, values, strict=True):
            out[rollout.row][t] = value
    return out


def _broadcast(rollout: Rollout, value: float) -> list[float]:
    return [value] * rollout.length


# ---------------------------------------------------------------------------------------------- statistics


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float], correction: int) -> float:
    mean = _mean(values)
    return math.fsum((x - mean) ** 2 for x in values) / (len(values) - correction)


def _masked_norm(x: float, pool: Sequence[float], std_eps: float, correction: int) -> float:
    """N(x; pool), the z-score; 0 without variance."""
    if len(pool) <= correction or max(pool) == min(pool):
        return 0.0
    return (x - _mean(pool)) / (math.sqrt(_variance(pool, correction)) + std_eps)


def _abs_max(x: float, pool: Sequence[float]) -> float:
    """x over the pool's largest absolute value; sign and zero kept."""
    largest = max((abs(y) for y in pool), default=0.0)
    return x / largest if largest > 0 else 0.0


def _apply(norm: str, x: float, pool: Sequence[float], std_eps: float, correction: int) -> float:
    _one_of("norm", norm, "masked_norm", "abs_max")
    if norm == "abs_max":
        return _abs_max(x, pool)
    return _masked_norm(x, pool, std_eps, correction)


def _sequence_norm(norm: str, norm_scope: str) -> str:
    """The operator of the outcome and format streams."""
    _one_of("norm_scope", norm_scope, "process", "all")
    return norm if norm_scope == "all" else "masked_norm"


def _singleton(x: float, singletons: str) -> float:
    """What a per-rollout stream becomes in a one-rollout group."""
    _one_of("singletons", singletons, "zero", "raw")
    return x if singletons == "raw" else 0.0


def _per_rollout(
    values: Sequence[float], singletons: str, std_eps: float, correction: int, norm: str = "masked_norm"
) -> list[float]:
    """A group's per-rollout stream, standardized in the group."""
    if len(values) == 1:
        return [_singleton(values[0], singletons)]
    return [_apply(norm, x, values, std_eps, correction) for x in values]


def _leave_one_out(values: Sequence[float], singletons: str) -> list[float]:
    """Each value minus the mean of the others."""
    if len(values) == 1:
        return [_singleton(values[0], singletons)]
    return [x - (math.fsum(values) - x) / (len(values) - 1) for x in values]


def _centered(values: Sequence[float], singletons: str) -> list[float]:
    if len(values) == 1:
        return [_singleton(values[0], singletons)]
    mean = _mean(values)
    return [x - mean for x in values]


def _whiten(credit: Sequence[tuple[Rollout, Sequence[float]]]) -> list[tuple[Rollout, list[float]]]:
    """(x - mean) / sqrt(var + 1e-8) over all response tokens of the batch."""
    pool = [x for _, values in credit for x in values]
    if len(pool) < 2 or max(pool) == min(pool):
        return [(rollout, _broadcast(rollout, 0.0)) for rollout, _ in credit]
    mean, scale = _mean(pool), math.sqrt(_variance(pool, 1) + WHITEN_EPS)
    return [(rollout, [(x - mean) / scale for x in values]) for rollout, values in credit]


def _return_to_go(values: Sequence[float], gamma: float = 1.0) -> list[float]:
    """G_t = values_t + gamma G_{t+1}."""
    out, running = [0.0] * len(values), 0.0
    for t in reversed(range(len(values))):
        running = values[t] + gamma * running
        out[t] = running
    return out


# ---------------------------------------------------------------------------------------------- streams


def _stream(group: Sequence[Rollout], name: str) -> list[float]:
    """A per-rollout stream (`outcome` or `format`), 0 where the batch does not have it."""
    return [getattr(rollout, name) or 0.0 for rollout in group]


def _total_rewards(group: Sequence[Rollout], w_outcome: float, w_format: float) -> list[float]:
    """R_i = w_outcome r_i + w_format f_i + the extra rewards."""
    totals = []
    for rollout in group:
        total = w_outcome * (rollout.outcome or 0.0) + w_format * (rollout.format or 0.0)
        for extra in rollout.extras:
            total += extra
        totals.append(total)
    return totals


def _step_pool(group: Sequence[Rollout]) -> list[float]:
    """The group's step signals, each step once (in token mode each covered token)."""
    return [s for rollout in group for _, s in rollout.steps]


def _raw_sum(rollout: Rollout, s: float, w_process: float, w_outcome: float, w_format: float) -> float:
    """The reward-shaping sum that lives on a step under `fusion="summed"`."""
    return w_process * s + w_outcome * (rollout.outcome or 0.0) + w_format * (rollout.format or 0.0)


def _summed_pool(group: Sequence[Rollout], w_process: float, w_outcome: float, w_format: float) -> list[float]:
    return [_raw_sum(rollout, s, w_process, w_outcome, w_format) for rollout in group for _, s in rollout.steps]


# ---------------------------------------------------------------------------------------------- 1 baselines


def grpo(
    batch: Batch, *, w_outcome: float = 1.0, w_format: float = 0.0, singletons: str = "zero",
    std_eps: float = 1e-6, correction: int = 1,
) -> Matrix:  # fmt: skip
    """A[i,t] = N(R_i; R_1..R_G)."""
    credit = []
    for group in _groups(batch):
        scores = _per_rollout(_total_rewards(group, w_outcome, w_format), singletons, std_eps, correction)
        credit += [(rollout, _broadcast(rollout, a)) for rollout, a in zip(group, scores, strict=True)]
    return _scatter(batch, credit)


def dr_grpo(batch: Batch, *, w_outcome: float = 1.0, w_format: float = 0.0, singletons: str = "zero") -> Matrix:
    """A[i,t] = R_i - mean R."""
    credit = []
    for group in _groups(batch):
        scores = _centered(_total_rewards(group, w_outcome, w_format), singletons)
        credit += [(rollout, _broadcast(rollout, a)) for rollout, a in zip(group, scores, strict=True)]
    return _scatter(batch, credit)


def rloo(batch: Batch, *, w_outcome: float = 1.0, w_format: float = 0.0, singletons: str = "zero") -> Matrix:
    """A[i,t] = G/(G-1) (R_i - mean R), which is R_i minus the mean of the others."""
    credit = []
    for group in _groups(batch):
        scores = _leave_one_out(_total_rewards(group, w_outcome, w_format), singletons)
        credit += [(rollout, _broadcast(rollout, a)) for rollout, a in zip(group, scores, strict=True)]
    return _scatter(batch, credit)


def reinforce_pp(
    batch: Batch, *, gamma: float = 1.0, baseline: bool = False, w_process: float = 1.0, w_outcome: float = 1.0,
    w_format: float = 0.0, singletons: str = "zero",
) -> Matrix:  # fmt: skip
    """Discounted returns of step rewards and a last R_i, or R_i - mean R; whitened over the batch's tokens."""
    credit = []
    for group in _groups(batch):
        totals = _total_rewards(group, w_outcome, w_format)
        if baseline:
            for rollout, a in zip(group, _centered(totals, singletons), strict=True):
                credit.append((rollout, _broadcast(rollout, a)))
            continue
        for rollout, total in zip(group, totals, strict=True):
            rewards = _broadcast(rollout, 0.0)
            for end, s in rollout.steps:
                rewards[end] += w_process * s
            rewards[-1] += total
            credit.append((rollout, _return_to_go(rewards, gamma)))
    return _scatter(batch, _whiten(credit))


def gdpo(
    batch: Batch, *, whiten_over: str = "rollouts", w_outcome: float = 1.0, w_format: float = 1.0,
    singletons: str = "zero", std_eps: float = 1e-6, correction: int = 1,
) -> Matrix:  # fmt: skip
    """Each channel z-scored in its group, weighted sum, z-score over the batch."""
    _one_of("whiten_over", whiten_over, "rollouts", "tokens")
    scores: list[tuple[Rollout, float]] = []
    for group in _groups(batch):
        channels = []
        if _given(batch, "rewards"):
            channels.append((w_outcome, _stream(group, "outcome")))
        if _given(batch, "format_rewards"):
            channels.append((w_format, _stream(group, "format")))
        for c in range(len(group[0].extras)):
            channels.append((1.0, [rollout.extras[c] for rollout in group]))
        sums = [0.0] * len(group)
        for weight, values in channels:
            for g, x in enumerate(_per_rollout(values, singletons, std_eps, correction)):
                sums[g] += weight * x
        scores += list(zip(group, sums, strict=True))
    pool = []
    for rollout, a in scores:
        pool += [a] if whiten_over == "rollouts" else _broadcast(rollout, a)
    credit = [(rollout, _broadcast(rollout, _masked_norm(a, pool, std_eps, correction))) for rollout, a in scores]
    return _scatter(batch, credit)


def papo(
    batch: Batch, *, w_process: float = 1.0, singletons: str = "zero", std_eps: float = 1e-6, correction: int = 1
) -> Matrix:
    """N(r_i; group) + w_process N(p_i; correct rollouts of the group), p_i the mean of the rollout's step signals."""
    _need(batch, "process")
    credit = []
    for group in _groups(batch):
        outcome = _per_rollout(_stream(group, "outcome"), singletons, std_eps, correction)
        p = {}  # by row, of the correct rollouts that have a step
        for rollout in group:
            if rollout.correct and rollout.steps:
                p[rollout.row] = _mean([s for _, s in rollout.steps])
        pool = list(p.values())
        for rollout, a in zip(group, outcome, strict=True):
            score = a
            if rollout.row in p and len(pool) >= 2:
                score += w_process * _masked_norm(p[rollout.row], pool, std_eps, correction)
            credit.append((rollout, _broadcast(rollout, score)))
    return _scatter(batch, credit)


def grpo_process(
    batch: Batch, *, fusion: str = "process", norm: str = "masked_norm", norm_scope: str = "process",
    w_process: float = 1.0, w_outcome: float = 1.0, w_format: float = 1.0, singletons: str = "zero",
    std_eps: float = 1e-6, correction: int = 1,
) -> Matrix:  # fmt: skip
    """A[i,t] = sum of the standardized values at t or later: steps at their ends, the rest on the last token."""
    _one_of("fusion", fusion, "process", "pooled", "summed", "separate")
    _need(batch, "process")
    sequence_norm = _sequence_norm(norm, norm_scope)
    has_outcome, has_format = _given(batch, "rewards"), _given(batch, "format_rewards")
    credit = []
    for group in _groups(batch):
        landed = [_broadcast(rollout, 0.0) for rollout in group]  # what sits on each token before the return-to-go
        outcomes, formats = _stream(group, "outcome"), _stream(group, "format")

        if fusion == "summed":
            pool = _summed_pool(group, w_process, w_outcome, w_format)
        elif fusion == "pooled":  # a weight of 0 keeps its stream out of the union
            pool = _step_pool(group) if w_process != 0 else []
            pool += outcomes if has_outcome and w_outcome != 0 else []
            pool += formats if has_format and w_format != 0 else []
        else:
            pool = _step_pool(group)

        for g, rollout in enumerate(group):
            for end, s in rollout.steps:
                if fusion == "summed":
                    raw = _raw_sum(rollout, s, w_process, w_outcome, w_format)
                    landed[g][end] += _apply(norm, raw, pool, std_eps, correction)
                elif w_process != 0:
                    landed[g][end] += w_process * _apply(norm, s, pool, std_eps, correction)

        for present, weight, values in ((has_outcome, w_outcome, outcomes), (has_format, w_format, formats)):
            if not present or weight == 0 or fusion not in ("pooled", "separate"):
                continue
            if fusion == "pooled":
                scores = [_apply(sequence_norm, x, pool, std_eps, correction) for x in values]
            else:
                scores = _per_rollout(values, singletons, std_eps, correction, sequence_norm)
            for g, score in enumerate(scores):
                landed[g][-1] += weight * score

        credit += [(rollout, _return_to_go(x)) for rollout, x in zip(group, landed, strict=True)]
    return _scatter(batch, credit)


# ---------------------------------------------------------------------------------------------- 2 SPRO


def spro(
    batch: Batch, *, beta: float = 0.05, attribution: str = "prefix", column_std: bool = False,
    clip: float | None = None, singletons: str = "zero", std_eps: float = 1e-6, correction: int = 1,
) -> Matrix:  # fmt: skip
    """A[i,t] = N(r_i; group) + MSA[i,t], MSA = x[i,t] minus the mean of x over the rollouts still alive at t."""
    _one_of("attribution", attribution, "prefix", "token", "return_to_go")
    _need(batch, "old", "ref")
    credit = []
    for group in _groups(batch):
        outcome = _per_rollout(_stream(group, "outcome"), singletons, std_eps, correction)
        x: Matrix = []
        for rollout in group:
            ratios = [beta * (old - ref) for old, ref in zip(rollout.old, rollout.ref, strict=True)]
            if attribution == "prefix":
                x.append([math.fsum(ratios[: t + 1]) for t in range(rollout.length)])
            elif attribution == "return_to_go":
                x.append([math.fsum(ratios[t:]) for t in range(rollout.length)])
            else:
                x.append(ratios)
        for g, rollout in enumerate(group):
            values = []
            for t in range(rollout.length):
                column = [row[t] for row in x if t < len(row)]
                if column_std:
                    msa = _masked_norm(x[g][t], column, std_eps, correction)
                else:
                    msa = x[g][t] - _mean(column)
                if clip is not None:
                    msa = max(-clip, min(clip, msa))
                values.append(outcome[g] + msa)
            credit.append((rollout, values))
    return _scatter(batch, credit)


# ---------------------------------------------------------------------------------------------- 3 PASS


def _process_stream(group: Sequence[Rollout], norm: str, std_eps: float, correction: int) -> Matrix:
    """The standardized process signal a token, 0 where uncovered."""
    pool = _step_pool(group)
    return [
        [0.0 if s is None else _apply(norm, s, pool, std_eps, correction) for s in rollout.signal] for rollout in group
    ]


def _chunk_ids(
    rollout: Rollout, u: Sequence[float], step_mode: bool, eta: float, chunking: str, min_chunk: int
) -> list[int]:
    """Run-length chunking of one response; `u` is compared with the chunk's first value."""
    _one_of("chunking", chunking, "value", "token")
    ids, first = [0], 0
    for t in range(1, rollout.length):
        covered, covered_before = rollout.step_of[t] >= 0, rollout.step_of[t - 1] >= 0
        if chunking == "token" or covered != covered_before:
            close = True
        elif not covered:
            close = False  # a maximal uncovered run is one chunk
        elif step_mode and rollout.step_of[t] != rollout.step_of[t - 1]:
            close = True
        else:
            close = t - first >= min_chunk and abs(u[t] - u[first]) > eta
        if close:
            first = t
        ids.append(ids[-1] + close)
    return ids


def _group_chunks(
    group: Sequence[Rollout], step_mode: bool, norm: str, std_eps: float, correction: int, eta: float, chunking: str,
    min_chunk: int,
) -> list[list[int]]:  # fmt: skip
    """Chunk index of every response token of a group."""
    standardized = _process_stream(group, norm, std_eps, correction)
    out = []
    for rollout in group:
        if step_mode:
            u = [0.0 if s is None else s for s in rollout.signal]
        else:  # group average at the same position, absent rollouts counting 0
            u = [math.fsum(row[t] for row in standardized if t < len(row)) / len(group) for t in range(rollout.length)]
        out.append(_chunk_ids(rollout, u, step_mode, eta, chunking, min_chunk))
    return out


def pass_chunks(
    batch: Batch, *, norm: str = "masked_norm", eta: float = 1e-8, chunking: str = "value", min_chunk: int = 1,
    std_eps: float = 1e-6, correction: int = 1, **_others: Any,
) -> list[list[int]]:  # fmt: skip
    """Chunk index of every token, counted from 0 in each response; -1 off-mask and on excluded rows."""
    _need(batch, "process")
    step_mode = _given(batch, "step_ids")
    chunks = []
    for group in _groups(batch):
        ids = _group_chunks(group, step_mode, norm, std_eps, correction, eta, chunking, min_chunk)
        chunks += list(zip(group, ids, strict=True))
    return _scatter(batch, chunks, fill=-1)


def _divide_length(values: Sequence[float], ids: Sequence[int], k: float, chunk_value: str) -> list[float]:
    """Chunk values, their return-to-go over chunks, divided by (remaining chunks)^k, broadcast over the chunk."""
    _one_of("chunk_value", chunk_value, "last", "mean", "sum")
    K = ids[-1] + 1
    chunk_values = []
    for j in range(K):
        inside = [x for x, c in zip(values, ids, strict=True) if c == j]
        if chunk_value == "last":
            chunk_values.append(inside[-1])
        elif chunk_value == "mean":
            chunk_values.append(_mean(inside))
        else:
            chunk_values.append(math.fsum(inside))
    per_chunk = [math.fsum(chunk_values[j:]) / (K - j) ** k for j in range(K)]
    return [per_chunk[c] for c in ids]


def pass_(
    batch: Batch, *, k: float = 0.7, norm: str = "masked_norm", norm_scope: str = "process", fusion: str = "separate",
    w_process: float = 1.0, w_outcome: float = 1.0, w_format: float = 1.0, eta: float = 1e-8, chunking: str = "value",
    chunk_value: str = "last", dl_scope: str = "fused", min_chunk: int = 1, singletons: str = "zero",
    std_eps: float = 1e-6, correction: int = 1,
) -> Matrix:  # fmt: skip
    """Advantage Fusion, then Chunk-by-Value, then Divide-Length."""
    _one_of("fusion", fusion, "separate", "summed")
    _one_of("dl_scope", dl_scope, "fused", "process")
    _need(batch, "process")
    step_mode = _given(batch, "step_ids")
    has_outcome, has_format = _given(batch, "rewards"), _given(batch, "format_rewards")
    sequence_norm = _sequence_norm(norm, norm_scope)
    W = w_process + (w_outcome if has_outcome else 0.0) + (w_format if has_format else 0.0)
    credit = []
    for group in _groups(batch):
        if not has_format and not all(rollout.format_ok for rollout in group):
            raise ValueError("`format_ok` has a violator but the batch has no `format_rewards`")
        chunks = _group_chunks(group, step_mode, norm, std_eps, correction, eta, chunking, min_chunk)

        process: Matrix  # the part that lives on tokens
        sequence: list[float]  # the part that is broadcast over the response
        if fusion == "summed":
            pool = _summed_pool(group, w_process, w_outcome, w_format)
            process, sequence = [], [0.0] * len(group)
            for rollout in group:
                row = []
                for s in rollout.signal:
                    if s is None:
                        row.append(0.0)
                    else:
                        raw = _raw_sum(rollout, s, w_process, w_outcome, w_format)
                        row.append(_apply(norm, raw, pool, std_eps, correction))
                process.append(row)
        else:
            standardized = _process_stream(group, norm, std_eps, correction)
            zeros = [0.0] * len(group)
            outcome, form = zeros, zeros
            if has_outcome:
                outcome = _per_rollout(_stream(group, "outcome"), singletons, std_eps, correction, sequence_norm)
            if has_format:
                form = _per_rollout(_stream(group, "format"), singletons, std_eps, correction, sequence_norm)
            process, sequence = [], []
            for g, rollout in enumerate(group):
                if rollout.format_ok:
                    process.append([w_process * s for s in standardized[g]])
                    sequence.append(w_outcome * outcome[g] + w_format * form[g])
                else:  # the gate: the whole weight pushes the format back
                    process.append(_broadcast(rollout, 0.0))
                    sequence.append(W * form[g])

        for g, rollout in enumerate(group):
            if dl_scope == "fused":
                values = _divide_length([x + sequence[g] for x in process[g]], chunks[g], k, chunk_value)
            else:
                values = [x + sequence[g] for x in _divide_length(process[g], chunks[g], k, chunk_value)]
            credit.append((rollout, values))
    return _scatter(batch, credit)


# ---------------------------------------------------------------------------------------------- 4 PRIME


def prime(
    batch: Batch, *, token_baseline: str = "code", process_norm: str | None = "batch_max", singletons: str = "zero"
) -> Matrix:
    """Leave-one-out outcome on the last token plus the baselined implicit process reward, returned and whitened."""
    _one_of("token_baseline", token_baseline, "code", "paper")
    _one_of("process_norm", process_norm, "batch_max", None)
    _need(batch, "process")
    groups = _groups(batch)

    p: dict[int, list[float]] = {}  # by row; 0 where uncovered and on the response's last token
    for group in groups:
        for rollout in group:
            p[rollout.row] = [0.0 if s is None or t == rollout.length - 1 else s for t, s in enumerate(rollout.signal)]
    if process_norm == "batch_max":
        largest = max((abs(x) for row in p.values() for x in _return_to_go(row)), default=0.0)
        p = {row: [x / (largest + PRIME_EPS) for x in values] for row, values in p.items()}

    credit = []
    for group in groups:
        m: dict[int, float] = {}  # mean of p over the covered tokens, by row
        for rollout in group:
            covered = [x for x, s in zip(p[rollout.row], rollout.signal, strict=True) if s is not None]
            if covered:
                m[rollout.row] = _mean(covered)
        n = len(m)
        outcome = _leave_one_out(_stream(group, "outcome"), singletons)
        for rollout, a in zip(group, outcome, strict=True):
            b = _broadcast(rollout, 0.0)
            for t, s in enumerate(rollout.signal):
                if s is None or n < 2:
                    continue
                if token_baseline == "code":
                    b[t] = n / (n - 1) * (p[rollout.row][t] - _mean(list(m.values())))
                else:
                    b[t] = p[rollout.row][t] - _mean([m_j for row, m_j in m.items() if row != rollout.row])
            last = [0.0] * (rollout.length - 1) + [a]
            returns = zip(_return_to_go(b), _return_to_go(last), strict=True)
            credit.append((rollout, [x + y for x, y in returns]))
    return _scatter(batch, _whiten(credit))
