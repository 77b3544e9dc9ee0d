"""What verl calls on ``torch.cuda``, for a CPU: `torch.cpu`, and what that lacks. verl gets this module as its device.

A CPU has one queue of work, which is done when the call returns, and no memory of its own: what waits, returns at
once, and what counts the device's memory counts none.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.cpu import Event, current_device, device_count, is_available, is_initialized, set_device, stream, synchronize

__all__ = [
    "Event",
    "Stream",
    "current_device",
    "current_stream",
    "device_count",
    "empty_cache",
    "get_device_name",
    "get_rng_state",
    "ipc_collect",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "set_device",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "stream",
    "synchronize",
]


class Stream(torch.cpu.Stream):
    """The one queue of a CPU."""

    def synchronize(self) -> None:
        """Nothing is ever pending."""


def current_stream(_device: Any = None) -> Stream:
    """The one there is."""
    return Stream()


def get_device_name(_device: Any = None) -> str:
    """What verl prints and looks up the peak speed by; it knows none for it."""
    return "CPU"


def mem_get_info(_device: Any = None) -> tuple[int, int]:
    """Free and total memory of the machine, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")


def memory_allocated(_device: Any = None) -> int:
    """No memory is the device's own."""
    return 0


memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated


def get_rng_state(_device: Any = None) -> Tensor:
    """The CPU's."""
    return torch.get_rng_state()


def set_rng_state(state: Tensor, _device: Any = None) -> None:
    """Sets the CPU's."""
    torch.set_rng_state(state)


def manual_seed(seed: int) -> None:
    """Seeds the CPU's generator."""
    torch.manual_seed(seed)


manual_seed_all = manual_seed


def is_bf16_supported(*_: Any) -> bool:
    """Slowly, but it is."""
    return True


def empty_cache(*_: Any, **__: Any) -> None:
    """Nothing is cached."""


reset_peak_memory_stats = set_per_process_memory_fraction = ipc_collect = empty_cache
