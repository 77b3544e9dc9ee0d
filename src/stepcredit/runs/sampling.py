"""Sampling whose random numbers belong to the completion, not to the batch it happens to be generated in."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepcredit.errors import InputError

GREEDY = -1  # the sample index of a problem's greedy completion


def uniforms(seed: int, example_id: str, sample: int, count: int) -> NDArray[np.float64]:
    """The random numbers of one completion, one a token, the same on every machine.

    Args:
        seed: The evaluation's.
        example_id: The problem's id.
        sample: Which of the problem's completions.
        count: How many; a larger count only adds numbers at the end.

    Returns:
        float64 [count], uniform in [0, 1), from numpy's Philox under a key hashed from the three.

    Example:
        >>> bool((uniforms(0, "test-3", 1, 5)[:2] == uniforms(0, "test-3", 1, 2)).all())
        True
    """
    digest = hashlib.blake2b(f"{seed}/{example_id}/{sample}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


class SeededSampler:
    """A logits processor for Hugging Face ``generate`` that samples by its own random numbers, row by row.

    With u the token's random number and p = softmax(scores / temperature) in float64, the token is the first one
    with ``cumsum(p) > u * sum(p)``. It is returned as the only one left, so that
    ``generate(do_sample=False, logits_processor=[sampler])`` picks it and leaves torch's random state alone. A row's
    tokens depend on its own scores, its key and the position, never on the other rows. One sampler serves one call.

    Args:
        keys: ``(example id, sample index)`` of each row; an index of -1 (`GREEDY`) makes the row greedy.
        seed: Chooses the random numbers.
        max_new_tokens: Tokens to sample, at most.
        temperature: Divides the scores; 0 makes every row greedy.
        top_p: Nucleus: sample among the fewest most likely tokens whose probabilities reach this sum; 1 for all.
        starts: How many tokens each row has sampled before, in earlier turns of its completion; None for none. Its next
            token is drawn with the number after those.

    Attributes:
        entropies: One float64 [rows] a sampled position: nats of the distribution drawn from. A greedy row tells that
            of softmax(scores), since a single token would always have 0.

    Raises:
        InputError: An argument is out of its range; on a call, other rows than keys, scores with nan or without any
            finite number, or more calls than ``max_new_tokens`` leaves to the row that has the most left.

    Degenerate cases:
        Greedy ties go to the lowest token id. A token of probability 0 (score -inf) is never drawn, u = 0 included.
        A row that has had its last number while others go on gets tokens that mean nothing: cut it there.

    Example:
        >>> sampler = SeededSampler([("a", 0), ("a", GREEDY)], seed=0, max_new_tokens=1)
        >>> scores = sampler(torch.zeros(2, 3, dtype=torch.long), torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
        >>> scores.tolist(), [round(float(h), 4) for h in sampler.entropies[0]]
        ([[0.0, -inf], [0.0, -inf]], [0.0, 0.6931])

    Reference:
        Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv 1904.09751 (nucleus sampling).
    """

    def __init__(
        self,
        keys: Sequence[tuple[str, int]],
        *,
        seed: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        starts: Sequence[int] | None = None,
    ) -> None:
        if not 0.0 <= temperature < float("inf"):
            raise InputError(f"`temperature` must be 0 (greedy) or a positive number; got {temperature}.")
        if not 0.0 < top_p <= 1.0:
            raise InputError(f"`top_p` must be above 0 and at most 1; got {top_p}.")
        self.keys = list(keys)
        self.top_p = top_p
        self.entropies: list[Tensor] = []
        draws = [uniforms(seed, example_id, sample, max_new_tokens) for example_id, sample in self.keys]
        self._uniforms = torch.from_numpy(np.stack(draws))
        self._starts = torch.zeros(len(self.keys), dtype=torch.long) if starts is None else torch.tensor(list(starts))
        if self._starts.shape != (len(self.keys),) or not bool(
            ((self._starts >= 0) & (self._starts < max_new_tokens)).all()
        ):
            raise InputError(f"`starts` must have a number from 0 to {max_new_tokens - 1} for every row; got {starts}.")
        self._greedy = torch.tensor([[temperature == 0 or sample == GREEDY] for _, sample in self.keys])
        self._temperatures = torch.where(self._greedy, 1.0, torch.tensor(temperature, dtype=torch.float64))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores with one token left a row: 0 there, -inf elsewhere.

        Args:
            input_ids: int [rows, time], of which only the number of rows is read.
            scores: float [rows, vocabulary], the model's logits for the next token.
        """
        if len(input_ids) != len(self.keys):
            raise InputError(f"`keys` must name every row; got {len(self.keys)} for {len(input_ids)} rows.")
        token = self.draw(scores, torch.arange(len(self.keys)))
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)

    def draw(self, scores: Tensor, rows: Tensor) -> Tensor:
        """The next token of some of the rows; it counts as a position of all.

        Args:
            scores: float [drawn, vocabulary], the model's logits for the next token.
            rows: Which rows they are: indices into ``keys``, int64 [drawn].

        Returns:
            int64 [drawn]. In `entropies` a row that is not drawn has 0.
        """
        rows = rows.cpu()
        positions = self._starts[rows] + len(self.entropies)
        last = self._uniforms.shape[1] - 1
        if int(positions.min()) > last:
            raise InputError(f"`max_new_tokens` must cover every call; got {last + 1}.")
        greedy, temperatures = (x[rows].to(scores.device) for x in (self._greedy, self._temperatures))
        p = torch.softmax(scores.double() / temperatures, dim=-1)
        if not bool(p.isfinite().all()):  # softmax spreads a nan, an inf or a row of -inf over its row
            row = int(rows[int((~p.isfinite()).any(dim=-1).nonzero()[0])])
            raise InputError(f"`model` must give finite scores; got nan or inf for {self.keys[row][0]!r}.")
        if self.top_p < 1.0:
            p = torch.where(greedy, p, _nucleus(p, self.top_p))
        nats = torch.special.entr(p / p.sum(dim=-1, keepdim=True)).sum(dim=-1).cpu()
        self.entropies.append(torch.zeros(len(self.keys), dtype=nats.dtype).index_copy_(0, rows, nats))
        cdf = p.cumsum(dim=-1)
        u = self._uniforms[rows, positions.clamp(max=last)][:, None].to(scores.device)
        drawn = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)
        return torch.where(greedy, scores.argmax(dim=-1, keepdim=True), drawn).squeeze(-1)


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """The probabilities of the fewest most likely tokens that reach ``top_p`` together, 0 elsewhere."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(p).scatter_(-1, order, torch.where(before < top_p, ordered, 0.0))
