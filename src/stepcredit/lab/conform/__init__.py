"""A conformance kit: golden batches, and laws that credit must keep on them whatever its scheme."""

from stepcredit.lab.conform.golden import Golden, golden_batches
from stepcredit.lab.conform.law import Law, Verdict
from stepcredit.lab.conform.laws import LAWS
from stepcredit.lab.conform.running import Report, conform
from stepcredit.lab.conform.target import Target, every_target, find_target

__all__ = [
    "LAWS",
    "Golden",
    "Law",
    "Report",
    "Target",
    "Verdict",
    "conform",
    "every_target",
    "find_target",
    "golden_batches",
]
