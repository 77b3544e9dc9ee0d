"""verl on a CPU: what the plug-in registers, what its server does, and a stock run of its trainer, end to end."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl.trainer", reason="verl is not installed: nothing can run on it")

from stepcredit import InputError
from stepcredit.adapters.verl_cpu.server import Server, ends_of, load_weights
from stepcredit.runs.policies import load_policy
from verl_launching import main_ppo, write_arithmetic

PROBE = """
import sys
{before}
import verl
from verl.plugin.platform import platform_manager
heavy = [name for name in ("verl.workers.rollout.replica", "verl.trainer.ppo.core_algos") if name in sys.modules]
print(platform_manager.get_platform().device_name, "cpu" in platform_manager.PlatformRegistry.registered_names(), heavy)
{after}
"""


def probe(switch: str | None, *, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """A fresh process that imports verl, with the switch set or not."""
    environment = {name: value for name, value in os.environ.items() if name != "STEPCREDIT_VERL_CPU"}
    environment |= {} if switch is None else {"STEPCREDIT_VERL_CPU": switch}
    command = [sys.executable, "-c", PROBE.format(before=before, after=after)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_verl_is_as_it_was_without_the_switch() -> None:
    ran = probe(None)
    assert ran.stdout.split()[1] == "False", ran.stderr
    assert "stepcredit" not in ran.stderr


def test_the_switch_gives_verl_a_cpu_and_imports_none_of_its_heavy_modules() -> None:
    after = """
import os, torch
from verl.utils.distributed import initialize_global_process_group_ray
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
initialize_global_process_group_ray()
value = torch.ones(3)
torch.distributed.all_reduce(value)
print(torch.distributed.get_backend(), value.tolist())
"""
    ran = probe("1", after=after)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["cpu True []", "cpu:gloo [1.0, 1.0, 1.0]"]


def test_a_machine_with_a_gpu_is_refused_aloud() -> None:
    """verl itself goes on without the plug-in and says nothing."""
    ran = probe("1", before="import torch\ntorch.cuda.is_available = lambda: True\ntorch.cuda.device_count = lambda: 2")
    assert ran.stdout.split()[1] == "False", ran.stderr
    assert "stepcredit: verl gets no CPU platform: `STEPCREDIT_VERL_CPU` must be set" in ran.stderr
    assert "got 2 of them" in ran.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and its problems, as files."""
    folder = tmp_path_factory.mktemp("arithmetic")
    write_arithmetic(folder)
    return folder


Make = Callable[..., Server]


@pytest.fixture
def make(folder: Path) -> Make:
    """Servers without Ray: `make(seed=1)`."""
    from omegaconf import OmegaConf
    from verl.workers.config import RolloutConfig

    def server(rank: int = 0, model: dict[str, Any] | None = None, **options: Any) -> Server:
        options = {
            "name": "stepcredit_cpu",
            "dtype": "float32",
            "prompt_length": 32,
            "response_length": 24,
            "tensor_model_parallel_size": 1,
            **options,
        }
        return Server(
            RolloutConfig(**options), OmegaConf.create({"path": str(folder / "policy"), **(model or {})}), rank
        )

    return server


PROMPT = [1, 19, 7, 20, 14, 9, 18]  # <bos>a:3b:+5 and a newline
SAMPLED = {"temperature": 2.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


async def ask(server: Server, count: int = 4, **parameters: Any) -> list[list[int]]:
    """What so many concurrent requests with one prompt are answered."""
    sent = [
        server.generate(
            prompt_ids=PROMPT,
            sampling_params={**SAMPLED, **parameters},
            request_id=str(i),
            image_data=None,
            video_data=None,
        )
        for i in range(count)
    ]
    return [answer.token_ids for answer in await asyncio.gather(*sent)]


def test_a_run_of_requests_repeats_and_no_two_rollouts_of_a_group_are_drawn_alike(make: Make) -> None:
    async def two_steps(server: Server) -> list[list[list[int]]]:
        wild = {"temperature": 5.0, "ignore_eos": True}  # no two draws are equal by chance
        first = [await ask(server, **wild), await ask(server, **wild)]
        await server.update_weights(server._model.state_dict(), 1)
        return [*first, await ask(server, **wild)]

    steps = asyncio.run(two_steps(make()))
    assert steps == asyncio.run(two_steps(make()))
    assert len({tuple(tokens) for step in steps for tokens in step}) == 12
    assert steps != asyncio.run(two_steps(make(seed=1)))
    assert steps != asyncio.run(two_steps(make(rank=1)))


def test_requests_of_one_moment_share_a_batch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server, sizes = make(), []
    forward = server._model.forward

    def counted(input_ids: Any, **options: Any) -> Any:
        sizes.append(len(input_ids))
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(server._model, "forward", counted)
    asyncio.run(ask(server, 7, max_tokens=2))
    assert sizes == [7, 7]


def test_a_request_that_fails_fails_its_whole_batch_and_no_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make()

    async def fail_once() -> int:
        with monkeypatch.context() as broken:
            broken.setattr(server, "_generate", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await ask(server)
        return len(await ask(server))

    assert asyncio.run(fail_once()) == 4
    with pytest.raises(InputError, match="image_data"):
        asyncio.run(server.generate(PROMPT, SAMPLED, "0", image_data=[1]))


def test_a_caller_that_goes_away_takes_nobody_along(make: Make) -> None:
    server = make()

    async def leave() -> int:
        leaving, staying = (asyncio.create_task(server.generate(PROMPT, SAMPLED, "0")) for _ in range(2))
        await asyncio.sleep(0.001)
        leaving.cancel()
        return len((await staying).token_ids)

    assert asyncio.run(asyncio.wait_for(leave(), 60)) > 0


def test_an_abort_stops_requests_where_they_are_and_holds_or_rejects_new_ones(make: Make) -> None:
    server = make(response_length=400, max_model_len=500)

    def request() -> Any:
        return server.generate(PROMPT, {**SAMPLED, "ignore_eos": True, "max_tokens": 400}, "0")

    async def abort() -> tuple[Any, Any, Any, bool, Any]:
        running = asyncio.create_task(request())
        await asyncio.sleep(0.2)
        queued = asyncio.create_task(request())
        await asyncio.sleep(0.05)
        await server.abort_all_requests(reject_request=True)
        rejected = await request()
        await server.abort_all_requests()
        held = asyncio.create_task(request())
        await asyncio.sleep(0.2)
        waited = not held.done()
        await server.resume_generation()
        return await running, await queued, rejected, waited, await held

    stopped, queued, rejected, waited, held = asyncio.run(abort())
    assert stopped.stop_reason == "aborted"
    assert 0 < len(stopped.token_ids) == len(stopped.log_probs) < 400
    assert [(answer.stop_reason, answer.token_ids) for answer in (queued, rejected)] == [("aborted", [])] * 2
    assert waited
    assert (held.stop_reason, len(held.token_ids)) == ("completed", 400)


def test_a_teacher_scores_what_it_is_sent(make: Make) -> None:
    """The layout in which verl reads it: one row a token, about the token that follows."""
    server = make()
    answer = asyncio.run(server.generate(PROMPT, {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}, "0"))
    log_probs = load_policy("tiny-arithmetic").model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    expected = [float(log_probs[t, token].detach()) for t, token in enumerate(PROMPT[1:])]
    assert [row for (row,) in answer.extra_fields["prompt_logprobs"]] == pytest.approx([*expected, 0.0], abs=1e-5)
    assert answer.extra_fields["prompt_ids"] == [*([token] for token in PROMPT[1:]), [0]]


def test_new_weights_are_all_taken_or_all_refused(make: Make) -> None:
    server = make()
    own = {name: weight.clone() for name, weight in server._model.state_dict().items()}
    tied, norm = "lm_head.weight", "model.norm.weight"
    doubled = {name: 2 * weight for name, weight in own.items()}
    for broken, said in (
        ({name: weight for name, weight in doubled.items() if name != norm}, r"without \['model.norm.weight'\]"),
        ({**doubled, "model.other": own[norm]}, r"with \['model.other'\]"),
        ({**doubled, norm: own[norm][:3]}, "`model.norm.weight` must have shape"),
    ):
        with pytest.raises(InputError, match=said):
            load_weights(server._model, broken)
        assert all(torch.equal(weight, own[name]) for name, weight in server._model.state_dict().items())
    doubled.pop(tied)  # the embedding by another name
    asyncio.run(server.update_weights(doubled, 3))
    assert all(torch.equal(weight, 2 * own[name]) for name, weight in server._model.state_dict().items())
    assert asyncio.run(server.generate(PROMPT, SAMPLED, "0")).extra_fields["global_steps"] == 3


def test_every_end_of_sequence_of_the_generation_config_ends_a_response(make: Make) -> None:
    server = make()
    assert server._ends == {2}
    server._model.generation_config.eos_token_id = [2, 18]
    assert ends_of(server._model, server._tokenizer) == {2, 18}


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ({}, {"logprobs_mode": "raw_logprobs"}, "`rollout.logprobs_mode`"),
        ({}, {"repetition_penalty": 1.1}, "`rollout.repetition_penalty`"),
        ({}, {"dtype": "half-ish"}, "`rollout.dtype`"),
        ({"lora_rank": 4}, {}, "`model.lora.merge`"),
    ],
)
def test_what_the_engine_does_not_honour_is_refused(
    make: Make, model: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        make(model=model, **options)


def test_stock_grpo_trains_and_its_rollouts_follow_its_weights(tmp_path: Path) -> None:
    """Two steps of verl's own trainer: the reference model says how far the first step moved the policy."""
    first, second = main_ppo(tmp_path, "actor_rollout_ref.actor.use_kl_loss=True")
    assert (first["step"], second["step"]) == (1, 2)
    for step in (first, second):
        assert step["training/rollout_probs_diff_max"] < 1e-5
        assert abs(step["rollout_corr/kl"]) < 1e-5
        assert step["actor/grad_norm"] > 0
    assert abs(first["actor/kl_loss"]) < 1e-5
    assert second["actor/kl_loss"] > 1e-4
