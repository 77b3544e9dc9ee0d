"""The CPU as one of verl's platforms."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from verl.plugin.platform.platform_base import PlatformBase

from stepcredit.adapters.verl_cpu import device


class CPUPlatform(PlatformBase):  # type: ignore[misc]
    """One device, always there, that talks through gloo and that Ray counts as if it were a GPU."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module: ModuleType = device

    def is_available(self) -> bool:
        """Every machine has one."""
        return True

    def current_device(self) -> str:
        """A device's name, where other platforms have an index: FSDP and tensors take either."""
        return device.current_device()

    def device_count(self) -> int:
        """One to a process: Ray decides how many processes there are."""
        return device.device_count()

    def set_device(self, _device_index: int) -> None:
        """There is no other."""

    def synchronize(self, _device_index: int | None = None) -> None:
        """Nothing is ever pending."""

    def manual_seed(self, seed: int) -> None:
        """Seeds torch."""
        device.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seeds torch."""
        device.manual_seed_all(seed)

    def set_allocator_settings(self, _settings: str) -> None:
        """The system's allocator takes none."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def get_device_capability(self, _device_index: int = 0) -> tuple[int | None, int | None]:
        """No compute capability."""
        return None, None

    def communication_backend_name(self) -> str:
        """The one collective backend that a CPU has in every build of torch."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Ray sets it for whatever it counts as a GPU; nothing here reads it."""
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        """A rank is placed on each ``GPU`` of Ray's; ``ray_kwargs.ray_init.num_gpus`` says how many to pretend."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Ray may set what it likes."""
        return []

    def is_ipc_supported(self) -> bool:
        """No device memory to share."""
        return False

    def cudart(self) -> None:
        """There is none."""

    @contextmanager
    def nvtx_range(self, _message: str) -> Iterator[None]:
        """Nothing profiles it."""
        yield

    def profiler_start(self) -> None:
        """Nothing profiles it."""

    def profiler_stop(self) -> None:
        """Nothing profiles it."""
