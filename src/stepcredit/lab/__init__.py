"""The bench: scoring files of rollouts, and pages that show where credit goes."""
