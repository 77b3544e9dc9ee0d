"""The two ends that verl has of a rollout engine: the replica, which starts the server, and the trainer's adapter."""

import os
from collections.abc import Iterable
from typing import Any

import ray
from torch import Tensor
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica

from stepcredit.adapters.verl_cpu.server import Server
from stepcredit.errors import InputError


def server_name(rank: int, role: str = "", suffix: str = "") -> str:
    """What Ray knows a replica's server by."""
    return f"stepcredit_cpu_server_{role}{rank}{suffix}"


class Replica(RolloutReplica):  # type: ignore[misc]
    """One server, in an actor that takes no CPU from Ray's count."""

    async def launch_servers(self) -> None:
        """Starts the server and waits until its model is loaded.

        Raises:
            InputError: A replica of more than one rank.
        """
        if self.world_size != 1:
            raise InputError(
                "`rollout.tensor_model_parallel_size`, `.data_parallel_size` and `.pipeline_model_parallel_size` "
                f"must be 1 on a CPU; got a replica of {self.world_size} ranks."
            )
        role = "reward_" if self.is_reward_model else "teacher_" if self.is_teacher_model else ""
        name = server_name(self.replica_rank, role, self.name_suffix)
        options = {"name": name, "num_cpus": 0, "max_concurrency": self.max_concurrency}
        server = ray.remote(Server).options(**options).remote(self.config, self.model_config, self.replica_rank)
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = name


class ServerAdapter(BaseRollout):  # type: ignore[misc]
    """What a trainer's rank has of its replica: a way to send weights."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        self._rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.sleep_level = 2  # verl sets it to 1 where adapters are sent apart

    async def resume(self, tags: list[str]) -> None:
        """The server has given nothing back."""

    async def release(self) -> None:
        """The server keeps what it has."""

    async def update_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        **_: Any,
    ) -> None:
        """Sends every weight to the server, in one message.

        Raises:
            InputError: Weights in another form than whole tensors by name; or not the model's.
        """
        if wire_format != "named_tensors":
            raise InputError(f"`wire_format` must be named_tensors on a CPU; got {wire_format}.")
        named = {name: weight.detach().cpu() for name, weight in weights}
        server = ray.get_actor(server_name(self._rank))
        await server.update_weights.remote(named, global_steps)
