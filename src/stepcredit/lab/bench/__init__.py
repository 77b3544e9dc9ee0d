"""Measurements: the advantage stage, several ranks, a signal, and the step around them."""
