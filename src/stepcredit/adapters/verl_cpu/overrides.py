"""What a verl config must say for a run on a CPU."""

from typing import Any

from stepcredit.adapters.verl_cpu.cures import ROLLOUT


def cpu_overrides(ranks: int, *, teachers: int = 0) -> dict[str, Any]:
    """Settings without which verl does not start on a CPU, or waits for ever.

    Args:
        ranks: Trainer processes; each has a rollout server beside it.
        teachers: Processes that serve a teacher.

    Returns:
        Dotted name -> value.
    """
    model, actor, rollout, ref = (f"actor_rollout_ref.{part}" for part in ("model", "actor", "rollout", "ref"))
    ray = "ray_kwargs.ray_init"
    return {
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": ranks,
        "trainer.nnodes": 1,
        f"{model}.override_config.attn_implementation": "sdpa",
        f"{model}.use_remove_padding": False,
        f"{actor}.strategy": "fsdp2",  # the first FSDP broadcasts its weights on a GPU
        f"{ref}.strategy": "fsdp2",
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{ref}.fsdp_config.use_torch_compile": False,
        f"{actor}.fsdp_config.dtype": "float32",
        f"{actor}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"{ref}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"{rollout}.name": ROLLOUT,
        f"{rollout}.dtype": "float32",
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.agent.num_workers": 1,
        "reward.num_workers": 1,
        "data.dataloader_num_workers": 0,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        f"{ray}.num_cpus": 16,  # logical ones: an actor that finds none left waits for ever, and says nothing
        f"{ray}.num_gpus": ranks + teachers,  # logical ones: verl places a process on each
        f"{ray}.include_dashboard": False,
    }
