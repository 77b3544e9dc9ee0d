"""Trainers: names and masks translated, nothing else."""
