"""verl's trainer as its users start it, on a CPU: a process of its own, Ray and all, for a few steps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from stepcredit.adapters.verl_cpu.overrides import cpu_overrides
from stepcredit.runs.policies import load_policy
from stepcredit.tasks import Arithmetic

REWARD = Path(__file__).parent / "on_verl" / "arithmetic_reward.py"
ENVIRONMENT = {
    "STEPCREDIT_VERL_CPU": "1",
    "HF_HUB_OFFLINE": "1",
    "HYDRA_FULL_ERROR": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",  # no token of the user's in a test's cluster
    "RAY_DEDUP_LOGS": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it kills a run of little memory when others have taken the machine's
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""What a tiny policy learnt to continue: the bare problem."""


def main_ppo(work: Path, *overrides: str, ranks: int = 1, timeout: float = 600) -> list[dict[str, Any]]:
    """Runs ``verl.trainer.main_ppo`` and gives back what it logged.

    Args:
        work: Everything is written here; data and policy only if they are not there yet. The log is ``verl.log``.
        overrides: Of verl's config, after and over those in `settings`.
        ranks: Trainer processes, a rollout server each.
        timeout: In seconds; then the run and its Ray are killed.

    Returns:
        verl's metrics, one dict a step.

    Raises:
        RuntimeError: The run failed or took too long; the message has the end of its log.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "policy").exists():
        write_arithmetic(work)
    metrics = work / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    temp = Path(tempfile.mkdtemp(prefix="sc", dir="/tmp"))  # a socket's path has 107 characters at most
    arguments = [f"++{name}={value}" for name, value in settings(work, temp, ranks).items()]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments, *overrides]
    environment = {**os.environ, **ENVIRONMENT, "VERL_FILE_LOGGER_PATH": str(metrics)}
    try:
        with (work / "verl.log").open("wb") as log:
            code = _run(command, environment, log, work, timeout)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    if code != 0:
        text = (work / "verl.log").read_text(errors="replace")
        raise RuntimeError(f"verl ended with {code if code is not None else 'no result in time'}:\n{text[-6000:]}")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{"step": line["step"], **line["data"]} for line in lines]


def settings(work: Path, temp: Path, ranks: int) -> dict[str, Any]:
    """What a CPU needs, and what keeps a run small: two steps of four groups of four."""
    model, actor, rollout, ref = (f"actor_rollout_ref.{part}" for part in ("model", "actor", "rollout", "ref"))
    return {
        **cpu_overrides(ranks),
        "algorithm.adv_estimator": "grpo",
        "data.train_files": work / "train.parquet",
        "data.val_files": work / "test.parquet",
        "data.train_batch_size": 4,
        "data.max_prompt_length": 64,
        "data.max_response_length": 32,
        "data.filter_overlong_prompts": False,
        f"{model}.path": work / "policy",
        f"{model}.enable_gradient_checkpointing": False,
        f"{actor}.ppo_mini_batch_size": 4,
        f"{actor}.ppo_micro_batch_size_per_gpu": 8,
        f"{actor}.optim.lr": 1e-3,
        f"{ref}.log_prob_micro_batch_size_per_gpu": 8,
        f"{rollout}.n": 4,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": 8,
        f"{rollout}.calculate_log_probs": True,
        "reward.custom_reward_function.path": REWARD,
        "critic.enable": False,
        "trainer.logger": "[console,file]",
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.total_training_steps": 2,
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": work / "checkpoints",
        "hydra.run.dir": work / "hydra",
        "ray_kwargs.ray_init._temp_dir": temp,
    }


def write_arithmetic(work: Path, *, operations: int = 2, problems: int = 16) -> None:
    """Writes ``policy``, ``train.parquet`` and ``test.parquet``: a tiny policy and the problems it was warmed up on."""
    policy = load_policy("tiny-arithmetic")
    policy.tokenizer.chat_template = TEMPLATE
    policy.model.save_pretrained(work / "policy")
    policy.tokenizer.save_pretrained(work / "policy")
    for split in ("train", "test"):
        rows = [
            {
                "data_source": "arithmetic",
                "prompt": [{"role": "user", "content": example.prompt}],
                "reward_model": {"style": "rule", "ground_truth": example.reference},
                "extra_info": {"index": index},
            }
            for index, example in enumerate(Arithmetic(operations=operations).examples(split, problems))
        ]
        pq.write_table(pa.Table.from_pylist(rows), work / f"{split}.parquet")


def _run(command: list[str], environment: dict[str, str], log: Any, work: Path, timeout: float) -> int | None:
    """The command's exit code; None if it took too long. Nothing that it started is left behind."""
    run = subprocess.Popen(command, env=environment, cwd=work, stdout=log, stderr=subprocess.STDOUT)
    started: list[psutil.Process] = []
    try:
        return run.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if run.poll() is None:
            started = psutil.Process(run.pid).children(recursive=True)
            run.send_signal(signal.SIGKILL)
            run.wait()
        for process in started:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
