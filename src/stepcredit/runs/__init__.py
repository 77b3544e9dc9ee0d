"""A training run: policies, data, the trainer, the run store, resume, evaluation."""
