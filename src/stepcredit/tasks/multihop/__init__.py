"""Multi-hop question answering: published sets and a built-in world, retrieval, search in several turns, grading."""

from stepcredit.tasks.multihop.reading import MultiHop
from stepcredit.tasks.multihop.searching import MultiHopSearch

__all__ = ["MultiHop", "MultiHopSearch"]
