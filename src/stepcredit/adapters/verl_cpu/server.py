"""The rollout server: one actor with a copy of the policy, that answers concurrent requests in batches."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stepcredit.adapters.verl_cpu.generation import Response, generate, score
from stepcredit.adapters.verl_cpu.sampling import Sampling, read_sampling, seed_of
from stepcredit.errors import InputError

GATHERING = 0.02
"""Seconds that the first request waits for others to share its batch."""


class Server:
    """Generates, scores, and takes new weights, one of these at a time. verl calls every public method.

    A request that names no seed draws from one made of the configured seed, the replica, the training step, the
    prompt, and how many requests with this prompt the step has had: a run repeats, up to what rounding in a batch of
    another size changes.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int) -> None:
        from verl.utils.config import omega_conf_to_dataclass
        from verl.workers.config import HFModelConfig

        self._config = omega_conf_to_dataclass(config)
        described = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        check(self._config, described)
        self._model = load_model(described, self._config.dtype)
        self._tokenizer = described.tokenizer
        self._ends = ends_of(self._model, self._tokenizer)
        self._replica_rank = replica_rank
        self._global_steps = 0
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._waiting: list[tuple[list[int], Sampling, asyncio.Future[Any]]] = []
        self._serving: asyncio.Task[None] | None = None
        self._model_is_mine = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._rejecting = False

    async def ready(self) -> int:
        """How many parameters the model has, once it is loaded."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        request_id: str,  # noqa: ARG002 (verl gives it; nothing here is sticky)
        **inputs: Any,
    ) -> Any:
        """Continues a prompt, or scores it if ``prompt_logprobs`` is asked for: verl's ``TokenOutput``.

        Raises:
            InputError: A sampling parameter that is not honoured, no room in the context, or an image, a video, ...
        """
        given = sorted(name for name, value in inputs.items() if value is not None)
        if given:
            raise InputError(f"a request must be of tokens alone on a CPU; got {', '.join(given)}.")
        prompt = [int(token) for token in prompt_ids]
        parameters = dict(sampling_params)
        top = parameters.pop("prompt_logprobs", None)
        if top is not None:
            return await self._scored(prompt, int(top))
        sampling = self._sampling(prompt, parameters)
        while not self._open.is_set():
            if self._rejecting:
                return self._output(self._empty(sampling))
            await self._open.wait()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((prompt, sampling, answer))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await answer

    async def update_weights(self, named: Mapping[str, Tensor], global_steps: int | None) -> None:
        """Takes the trainer's weights, every one of them, when no batch is running."""
        async with self._model_is_mine:
            load_weights(self._model, named)
            self._asked.clear()
            if global_steps is not None:
                self._global_steps = global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, int]:
        """Stops the running batch where it is; new requests wait, or are answered with nothing."""
        self._open.clear()
        self._rejecting = reject_request
        waiting, self._waiting = self._waiting, []
        for _, sampling, answer in waiting:
            answer.set_result(self._output(self._empty(sampling)))
        async with self._model_is_mine:  # the batch has noticed, and its rows are out
            return {"aborted_count": len(waiting)}

    async def resume_generation(self) -> None:
        """Takes requests again."""
        self._rejecting = False
        self._open.set()

    async def nothing(self, *_: Any, **__: Any) -> None:
        """Memory is never given back and taken again, the cache lives as long as its batch, nothing is profiled."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing

    def _sampling(self, prompt: list[int], parameters: dict[str, Any]) -> Sampling:
        config, context = self._config, self._config.max_model_len or self._model.config.max_position_embeddings
        before = self._asked[tuple(prompt)]
        self._asked[tuple(prompt)] += 1
        return read_sampling(
            parameters,
            room=context - len(prompt),
            default=min(config.response_length, config.prompt_length + config.response_length - len(prompt)),
            seed=seed_of([config.seed, self._replica_rank, self._global_steps, before, *prompt]),
            ignore_eos=config.ignore_eos,
        )

    async def _serve(self) -> None:
        """Batches what waits, until nothing does."""
        await asyncio.sleep(GATHERING)
        while self._waiting:
            async with self._model_is_mine:
                batch, self._waiting = self._waiting, []
                if batch:  # else an abort came first
                    await self._answer(batch)

    async def _answer(self, batch: list[tuple[list[int], Sampling, asyncio.Future[Any]]]) -> None:
        """Generates for a batch; an error is the answer to each of those who wait."""
        prompts, samplings, answers = zip(*batch, strict=True)
        try:
            responses = await asyncio.to_thread(self._generate, prompts, samplings)
            outputs = [self._output(response) for response in responses]
        except Exception as error:  # noqa: BLE001
            for answer in answers:
                if not answer.done():  # a caller that is gone has cancelled it
                    answer.set_exception(error)
            return
        for answer, output in zip(answers, outputs, strict=True):
            if not answer.done():
                answer.set_result(output)

    def _generate(self, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> list[Response]:
        return generate(
            self._model,
            prompts,
            samplings,
            ends=self._ends,
            decode=self._tokenizer.decode,
            aborted=lambda: not self._open.is_set(),
        )

    async def _scored(self, ids: list[int], top: int) -> Any:
        async with self._model_is_mine:
            about, log_probs = await asyncio.to_thread(score, self._model, ids, top)
        from verl.workers.rollout.replica import TokenOutput

        fields = {"global_steps": self._global_steps, "prompt_ids": about, "prompt_logprobs": log_probs}
        return TokenOutput(token_ids=[0], stop_reason="completed", extra_fields=fields)

    def _empty(self, sampling: Sampling) -> Response:
        return Response(sampling, self._ends, self._tokenizer.decode)

    def _output(self, response: Response) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        return TokenOutput(
            token_ids=response.token_ids,
            log_probs=response.log_probs,
            stop_reason="completed" if response.ended else "aborted",
            extra_fields={"global_steps": self._global_steps},
        )


def check(config: Any, model_config: Any) -> None:
    """Refuses what the configuration asks of the engine and would not get.

    Raises:
        InputError: Log-probs of another kind than the sampler's, a repetition penalty, or weights that come as LoRA.
    """
    if config.logprobs_mode != "processed_logprobs":
        raise InputError(f"`rollout.logprobs_mode` must be processed_logprobs on a CPU; got {config.logprobs_mode}.")
    if config.repetition_penalty != 1:
        raise InputError(f"`rollout.repetition_penalty` must be 1 on a CPU; got {config.repetition_penalty}.")
    lora = model_config.lora_rank or model_config.lora_adapter_path
    if lora and not model_config.lora.get("merge", False):
        raise InputError("`model.lora.merge` must be True on a CPU; got adapters apart from the weights.")


def load_model(model_config: Any, dtype: str) -> Any:
    """The checkpoint, in eval mode, with the attention that the trainer computes."""
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise InputError(f"`rollout.dtype` must be a type of torch; got {dtype!r}.")
    attention = model_config.override_config.get("attn_implementation", "sdpa")
    model = AutoModelForCausalLM.from_pretrained(
        model_config.local_path,
        dtype=kind,
        attn_implementation=attention,
        trust_remote_code=model_config.trust_remote_code,
    )
    return model.eval()


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a sequence: the generation config's, one or several; else the model's, else the text's."""
    for ends in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        if ends is not None:
            return frozenset([ends] if isinstance(ends, int) else ends)
    return frozenset()


def load_weights(model: Any, named: Mapping[str, Tensor]) -> None:
    """Copies weights into a model, by name.

    Raises:
        InputError: A weight of the model that is not given, unless it shares its memory with one that is; a name that
            the model has not; or another shape. The model is as it was.
    """
    own = model.state_dict()
    given = {own[name].data_ptr() for name in named if name in own}
    missing = sorted(name for name, weight in own.items() if name not in named and weight.data_ptr() not in given)
    unexpected = sorted(set(named) - set(own))
    if missing or unexpected:
        raise InputError(
            f"weights must be the model's {len(own)}, by name; got {len(named)}, "
            f"without {missing[:3] or 'none'} and with {unexpected[:3] or 'none'} that it has not."
        )
    for name, weight in named.items():
        if weight.shape != own[name].shape:
            raise InputError(f"`{name}` must have shape {tuple(own[name].shape)}; got {tuple(weight.shape)}.")
    for name, weight in named.items():
        own[name].copy_(weight)
