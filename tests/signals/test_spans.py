"""The projection rule against a brute-force reading of its sentence, by hand, and on real tokens."""

import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepcredit.batch import Rollouts, ScoredSpan, Span
from stepcredit.batch.ranges import Ranges, ScoredRanges
from stepcredit.errors import InputError
from stepcredit.signals.offsets import token_offsets
from stepcredit.signals.scored_spans import ProjectedScores, project_scores
from stepcredit.signals.spans import Projection, project, token_spans

many = settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def brute_force(spans, offsets, text, mask):
    """Every token against every span, character by character."""
    step_ids, before = [], -1
    for (start, end), trained in zip(offsets, mask, strict=True):
        if not trained:
            step_ids.append(-1)
            continue
        if start < end:
            before = -1
            candidates = []
            pieces, low = [], 0  # the spans and the text between them, in order
            for index, (span_start, span_end, *_) in enumerate(spans):
                pieces += [(-1, low, span_start), (index, span_start, span_end)]
                low = span_end
            pieces.append((-1, low, len(text)))
            for place, (index, left, right) in enumerate(pieces):
                held = [text[c] for c in range(start, end) if left <= c < right]
                candidates.append((sum(not c.isspace() for c in held), len(held), -place, index))
            before = max(candidates)[3]
        step_ids.append(before)
    return step_ids


@st.composite
def cases(draw):
    """Text with many spaces, spans with gaps and empty ones, tokens that are empty or share characters, a mask."""
    text = draw(st.text("ab \n\u3000é", max_size=24))
    cut = st.integers(0, len(text))
    edges = sorted(draw(st.lists(cut, max_size=12)))
    pairs = list(pairwise(edges))
    spans = [Span(*pair) for pair in pairs if draw(st.booleans())]
    bounds = [0, *sorted(draw(st.lists(cut, max_size=16))), len(text)]
    offsets = []
    for pair in pairwise(bounds):
        offsets += [pair] * draw(st.sampled_from([1, 1, 1, 3]) if pair[1] - pair[0] == 1 else st.just(1))
    mask = draw(st.lists(st.booleans() | st.just(True), min_size=len(offsets), max_size=len(offsets)))
    return text, spans, offsets, mask


@many
@given(case=cases())
def test_brute_force(case):
    text, spans, offsets, mask = case
    projection = project(spans, offsets, text, mask)
    assert projection.step_ids == brute_force(spans, offsets, text, mask)
    assert projection.uncovered == [t for t, m in enumerate(mask) if m and projection.step_ids[t] == -1]
    assert projection.empty_spans == [s for s in range(len(spans)) if s not in projection.step_ids]
    covered = [step for step in projection.step_ids if step >= 0]
    assert covered == sorted(covered)


@st.composite
def joined_cases(draw):
    """Spans that begin and end with tokens, where each token begins at the end of the one before: no vote is taken."""
    lengths = draw(st.lists(st.integers(0, 3), max_size=10))
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    edges = sorted(draw(st.lists(st.sampled_from(bounds), max_size=8)))
    spans = [Span(*pair) for pair in pairwise(edges) if draw(st.booleans())]
    return "x" * bounds[-1], spans, bounds


@many
@given(case=joined_cases(), seed=st.integers(0, 99))
def test_brute_force_where_tokens_join(case, seed):
    text, spans, bounds = case
    offsets, ones = list(pairwise(bounds)), [True] * (len(bounds) - 1)
    expected = brute_force(spans, offsets, text, ones)
    assert project(spans, Ranges(bounds), text).step_ids == project(spans, offsets, text, ones).step_ids == expected
    rng = random.Random(seed)
    scored = [[ScoredSpan(*span, rng.random()) for span in spans] for _ in range(3)]
    kinds = [Ranges(bounds), offsets, Ranges(bounds)]
    whole = project_scores(Rollouts(["p"] * 3, [text] * 3, [0] * 3, offsets=kinds, response_mask=[ones] * 3), scored)
    assert whole.step_ids == [expected] * 3
    assert whole.process_rewards == [[row[step].score if step >= 0 else 0.0 for step in expected] for row in scored]
    assert whole.uncovered[0] == [i for i, step in enumerate(expected) if step < 0]
    assert whole.empty_spans[0] == [i for i in range(len(spans)) if i not in expected]


@many
@given(ends=st.lists(st.lists(st.integers(0, 9), max_size=4).map(sorted), min_size=1, max_size=4), rng=st.randoms())
def test_scored_ranges_are_placed_as_the_spans_that_they_read_as(ends, rng):
    texts = [rng.choice(["ab c" * 3, "x" * 9]) for _ in ends]
    offsets = [Ranges([*range(len(text) + 1)]) for text in texts]
    rollouts = Rollouts([""] * len(texts), texts, [0] * len(texts), offsets=offsets)
    ranges = [ScoredRanges(row, [rng.random() for _ in row]) for row in ends]
    expected = project_scores(rollouts, [[*row] for row in ranges])
    for scores in (ranges, [ranges[0], *map(tuple, ranges[1:])]):
        assert project_scores(rollouts, scores) == expected


@pytest.mark.parametrize(
    ("ends", "scores", "message"),
    [
        ([4, 6], [1.0, 1.0], r"`scores` must lie inside the completion; got \(4, 6\) of 5 characters, row 1"),
        ([2, 1], [1.0, 1.0], r"`scores` must lie inside the completion; got \(2, 1\) of 5 characters, row 1"),
        ([-1, 5], [1.0, 1.0], r"`scores` must lie inside the completion; got \(0, -1\) of 5 characters, row 1"),
        ([4, 5], [1.0, float("nan")], r"`scores` must be finite numbers; got nan for span 1, \(4, 5\), in row 1"),
    ],
)
def test_scored_ranges_are_checked_as_spans(ends, scores, message):
    rollouts = Rollouts(["", ""], ["abcde"] * 2, [0, 0], offsets=[Ranges([0, 2, 4, 5])] * 2)
    with pytest.raises(InputError, match=message):
        project_scores(rollouts, [ScoredRanges([5], [1.0]), ScoredRanges(ends, scores)])


@many
@given(case=cases())
def test_masked_tokens_change_nothing(case):
    text, spans, offsets, mask = case
    kept = [offset for offset, trained in zip(offsets, mask, strict=True) if trained]
    with_holes = project(spans, offsets, text, mask)
    alone = project(spans, kept, text)
    assert [s for s, trained in zip(with_holes.step_ids, mask, strict=True) if trained] == alone.step_ids
    assert {s for s, trained in zip(with_holes.step_ids, mask, strict=True) if not trained} <= {-1}
    assert with_holes.empty_spans == alone.empty_spans


@many
@given(data=st.data(), text=st.text("ab \n", min_size=1, max_size=24))
def test_boundaries_on_tokens_round_trip(data, text):
    bounds = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=10))})
    offsets = [(low, high) for low, high in pairwise(bounds) for _ in range(2 - (high - low > 1))]
    edges = sorted(data.draw(st.sets(st.sampled_from(bounds), min_size=2)))
    spans = [Span(*pair) for pair in pairwise(edges) if data.draw(st.booleans())]
    projection = project(spans, [*offsets, (len(text), len(text))], text)
    assert token_spans(projection.step_ids, [*offsets, (len(text), len(text))]) == dict(enumerate(spans))


@pytest.mark.parametrize("kind", ["byte_level", "word_piece", "unigram", "byte_fallback"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_real_tokens(tokenizers, corpus, kind, seed):
    """Steps = lines of real text, projected on tokens sampled for it, an end of sequence and tool output between."""
    rng = random.Random(seed)
    tokenizer = tokenizers[kind]
    first, last = (tokenizer.encode(rng.choice(corpus)[-300:], add_special_tokens=False) for _ in range(2))
    tool = [rng.randrange(2, len(tokenizer)) for _ in range(rng.randrange(9))]
    ids = [*first, 0, *tool, *last, 0]
    mask = [True] * (len(first) + 1) + [False] * len(tool) + [True] * (len(last) + 1)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    offsets = token_offsets(tokenizer, ids, text)
    spans, position = [], 0
    for line in text.splitlines(keepends=True):
        spans.append(Span(position, position + len(line.rstrip())))
        position += len(line)
    projection = project(spans, offsets, text, mask)
    assert projection.step_ids == brute_force(spans, offsets, text, mask)
    assert len(projection.step_ids) == len(ids)
    # Covered exactly once, masked, or reported: nothing else.
    for token, (step, trained) in enumerate(zip(projection.step_ids, mask, strict=True)):
        assert (step >= 0) + (not trained) + (token in projection.uncovered) == 1
    # On token boundaries the way back is exact; take the credited spans themselves.
    if "\ufffd" not in text:
        credited = token_spans(project(spans, offsets, text).step_ids, offsets)
        again = project(list(credited.values()), offsets, text)
        assert list(token_spans(again.step_ids, offsets).values()) == list(credited.values())


# "a+b=3.\n\nSo 3." has 13 characters: a0 +1 b2 =3 34 .5 \n6 \n7 S8 o9 _10 311 .12
TEXT = "a+b=3.\n\nSo 3."


@pytest.mark.parametrize(
    ("spans", "offsets", "expected"),
    [
        # A token that crosses the boundary goes to the span with more of it: [4, 9) holds "3." and "S".
        ([(0, 6), (8, 13)], [(0, 4), (4, 9), (9, 13)], [0, 0, 1]),
        # [5, 10) holds "." of the first, "So" of the second.
        ([(0, 6), (8, 13)], [(0, 5), (5, 10), (10, 13)], [0, 1, 1]),
        # Non-space first: [3, 8) has "=3." against the line breaks alone.
        ([(0, 6), (6, 13)], [(0, 3), (3, 8), (8, 13)], [0, 0, 1]),
        # [5, 9) has "." against "\n\nS": one non-space character each, three characters against one.
        ([(0, 6), (6, 13)], [(0, 5), (5, 9), (9, 13)], [0, 1, 1]),
        # [5, 9) with the gap uncovered: one each, and one character each; the earlier span.
        ([(0, 6), (8, 13)], [(0, 5), (5, 9), (9, 13)], [0, 0, 1]),
        # Only spaces: [6, 8), one character each: the earlier; two against none: the holder.
        ([(0, 7), (7, 13)], [(0, 6), (6, 8), (8, 13)], [0, 0, 1]),
        ([(0, 6), (6, 13)], [(0, 6), (6, 8), (8, 13)], [0, 1, 1]),
        # A boundary one further right or left moves one token each.
        ([(0, 5), (5, 13)], [(i, i + 1) for i in range(13)], [0] * 5 + [1] * 8),
        ([(0, 6), (6, 13)], [(i, i + 1) for i in range(13)], [0] * 6 + [1] * 7),
        ([(1, 5), (5, 12)], [(i, i + 1) for i in range(13)], [-1] + [0] * 4 + [1] * 7 + [-1]),
        # In the gap: uncovered. The empty token after it, too; the one at the end is the last step's.
        ([(0, 6), (8, 13)], [(0, 6), (6, 8), (8, 8), (8, 13), (13, 13)], [0, -1, -1, 1, 1]),
        # An empty token follows the token before it, not its position; at the very start it has none.
        ([(0, 6), (6, 13)], [(0, 0), (0, 6), (6, 6), (6, 13)], [-1, 0, 0, 1]),
        # [6, 9) is "\n\nS" with the span ending after the first line break: the rest, outside, holds the "S".
        ([(0, 7)], [(0, 6), (6, 9), (9, 13)], [0, -1, -1]),
        # [5, 7) is ".\n" with the span ending after ".": the non-space character decides.
        ([(0, 6)], [(0, 5), (5, 7), (7, 13)], [0, 0, -1]),
        # The middle span wins inside a long token; empty spans never own.
        ([(0, 1), (1, 5), (5, 5), (5, 6), (6, 6)], [(0, 6), (6, 13)], [1, -1]),
        # Two tokens that share a character.
        ([(0, 1), (1, 13)], [(0, 1), (1, 2), (1, 2), (2, 13)], [0, 1, 1, 1]),
        ([], [(0, 13)], [-1]),
    ],
)
def test_by_hand(spans, offsets, expected):
    projection = project([Span(*span) for span in spans], offsets, TEXT)
    assert projection.step_ids == expected
    assert projection.uncovered == [i for i, step in enumerate(expected) if step == -1]
    assert projection.empty_spans == [i for i in range(len(spans)) if i not in expected]


def test_by_hand_mask():
    # The tool wrote "\n\nSo": its tokens get -1; the empty token after it still follows the policy's last token.
    spans, offsets = [Span(0, 8), Span(8, 13)], [(0, 6), (6, 8), (8, 10), (10, 10), (10, 13), (13, 13)]
    mask = [True, False, False, True, True, True]
    assert project(spans, offsets, TEXT, mask) == Projection([0, -1, -1, 0, 1, 1], [], [])
    # With the last step masked nothing owns it: reported, and its index stays free.
    mask = [True, True, False, True, False, False]
    assert project(spans, offsets, TEXT, mask) == Projection([0, 0, -1, 0, -1, -1], [], [1])
    assert project([], offsets[:2], TEXT, [False, True]) == Projection([-1, -1], [1], [])
    assert project([], [], TEXT) == Projection([], [], [])


def test_way_back():
    offsets = [(0, 2), (2, 3), (3, 3), (3, 5), (5, 9), (9, 9)]
    assert token_spans([0, 0, 0, -1, 3, 3], offsets) == {0: Span(0, 3), 3: Span(5, 9)}
    # Over tool output in the middle of a step, and not further for the empty token after it.
    assert token_spans([1, -1, 1], [(0, 2), (2, 3), (3, 3)]) == {1: Span(0, 2)}
    assert token_spans([1, -1, 1], [(0, 2), (2, 3), (3, 4)]) == {1: Span(0, 4)}
    assert token_spans([], []) == {}
    with pytest.raises(InputError, match="got 1 for 0 tokens"):
        token_spans([0], [])


@pytest.mark.parametrize(
    ("spans", "offsets", "mask", "message"),
    [
        ([(0, 14)], [(0, 13)], None, r"`spans` must .*inside the completion; got \(0, 14\)"),
        ([(0, 5), (4, 6)], [(0, 13)], None, r"`spans` must be in order; got \(4, 6\) after \(0, 5\)"),
        ([(5, 4)], [(0, 13)], None, "`spans` must .*inside"),
        ([(0, 5)], [(0, 14)], None, "`offsets` must .*inside"),
        ([(0, 5)], [(2, 3), (1, 4)], None, "`offsets` must be in order"),
        ([(0, 5)], [(0, 13)], [True, True], "`response_mask` must have one entry a token; got 2 for 1 tokens"),
    ],
)
def test_project_refuses(spans, offsets, mask, message):
    with pytest.raises(InputError, match=message):
        project([Span(*span) for span in spans], offsets, TEXT, mask)


def rollouts(**changes):
    """Two rollouts: TEXT in four tokens and an end of sequence, and "ok" in one."""
    offsets = [[(0, 6), (6, 8), (8, 11), (11, 13), (13, 13)], [(0, 2)]]
    return Rollouts(["q", "q"], [TEXT, "ok"], group_ids=[0, 0], offsets=offsets).replace(**changes)


def test_scores_by_hand():
    scores = [[ScoredSpan(0, 6, 0.25), ScoredSpan(6, 6, 0.5), ScoredSpan(8, 13, -1.0)], []]
    found = project_scores(rollouts(), scores)
    assert found.process_rewards == [[0.25, 0.0, -1.0, -1.0, -1.0], [0.0]]
    assert found.step_ids == [[0, -1, 2, 2, 2], [-1]]
    assert found.uncovered == [[1], [0]]
    assert found.empty_spans == [[1], []]
    assert (found.uncovered_count, found.empty_span_count) == (2, 1)


def test_scores_under_a_mask():
    mask = [[True, False, False, True, True], [False]]
    found = project_scores(rollouts(response_mask=mask), [[ScoredSpan(0, 8, 1), ScoredSpan(8, 11, 2)], []])
    assert found.process_rewards == [[1.0, 0.0, 0.0, 0.0, 0.0], [0.0]]
    assert found.step_ids == [[0, -1, -1, -1, -1], [-1]]
    assert (found.uncovered, found.empty_spans) == ([[3, 4], []], [[1], []])


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, "0.5", None])
def test_scores_must_be_finite(score):
    with pytest.raises(InputError, match=rf"finite numbers; got {score!r} for span 1, \(1, 2\), in row 1"):
        project_scores(rollouts(), [[], [ScoredSpan(0, 1, 0.0), ScoredSpan(1, 2, score)]])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[]], "`scores` must have one entry a rollout; got 1 for 2 rollouts"),
        ([[], [ScoredSpan(0, 3, 1.0)]], r"`scores` must .*inside the completion; got \(0, 3\) .*row 1"),
        (
            [[], [ScoredSpan(0, 2, 1.0), ScoredSpan(1, 2, 1.0)]],
            r"`scores` must .*in order; got \(1, 2\) after \(0, 2\).*row 1",
        ),
    ],
)
def test_scores_refuses(scores, message):
    with pytest.raises(InputError, match=message):
        project_scores(rollouts(), scores)


def test_no_rollouts_have_no_scores():
    assert project_scores(Rollouts([], [], group_ids=[], offsets=[]), []) == ProjectedScores([], [], [], [])


def test_scores_need_offsets():
    with pytest.raises(InputError, match="`rollouts` must have offsets"):
        project_scores(Rollouts(["q"], ["ok"], group_ids=[0]), [[]])


class CountedText(str):
    """Counts the characters that slicing reads."""

    read = 0

    def __getitem__(self, key):
        found = super().__getitem__(key)
        CountedText.read += len(found)
        return found


def test_linear_in_tokens_and_spans():
    size = 20_000
    text = CountedText("ab" * size)
    spans = [Span(4 * i + 1, min(4 * i + 5, len(text))) for i in range(size // 2)]
    CountedText.read = 0
    projection = project(spans, [(2 * i, 2 * i + 2) for i in range(size)], text)
    # Every other token straddles a boundary, one character on each side: the earlier has it (at the start, no span).
    assert projection.step_ids == [i // 2 - (i % 2 == 0) for i in range(size)]
    assert 0 < CountedText.read <= len(text)


def test_scores_may_be_tensors():
    half = torch.tensor(0.5, dtype=torch.bfloat16)
    found = project_scores(rollouts(), [[ScoredSpan(0, 7, half)], [ScoredSpan(0, 2, half)]])
    assert found.process_rewards == [[0.5, 0.5, 0.0, 0.0, 0.0], [0.5]]
