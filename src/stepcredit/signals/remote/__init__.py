"""Served models: process rewards and log-probabilities over HTTP, from vLLM or ``stepcredit serve``."""

from stepcredit.signals.remote.prm import RemotePRM
from stepcredit.signals.remote.served import RemoteError, Served
from stepcredit.signals.remote.teacher import RemoteTeacher

__all__ = ["RemoteError", "RemotePRM", "RemoteTeacher", "Served"]
