"""Multi-hop question answering: published sets and a built-in world, retrieval, search in several turns, grading."""

from stepcredit.tasks.multihop.multihop import MultiHop, MultiHopSearch

__all__ = ["MultiHop", "MultiHopSearch"]
