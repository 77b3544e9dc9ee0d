"""Runs on verl's trainer, from the same configs: settings as overrides, a task as agent loop and reward function."""
