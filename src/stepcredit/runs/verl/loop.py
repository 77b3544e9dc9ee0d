"""The agent loop that writes a task's rollouts, in one turn or with the task's environment between the turns."""

import json
import logging
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from stepcredit.adapters.verl.rewards import FAILED, KEY
from stepcredit.errors import InputError, StepCreditError
from stepcredit.runs.conversing import Dialogue
from stepcredit.runs.verl.tasks import end_tokens, run_protocol
from stepcredit.signals.offsets import policy_turns, token_offsets

_LOGGER = logging.getLogger(__name__)


class TaskLoop(AgentLoopBase):  # type: ignore[misc]
    """Talks as the other engine's rollouts do: the same prompts, tags or tool calls, limits and observations.

    What the environment writes is 0 in ``response_mask``. For the reward function it says whether the completion is
    finished, and which spans the policy wrote.

    Args:
        config: The path of the run's ``config.toml``.
    """

    def __init__(self, *args: Any, config: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run_config = config
        self.ends = end_tokens(self.tokenizer, str(self.config.actor_rollout_ref.model.path))

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """One rollout of one row: ``raw_prompt``, and ``reward_model.ground_truth`` for the environment.

        verl drops a rollout that raises and trains on the others: what is raised here travels to the controller.
        """
        try:
            return await self._written(sampling_params, row)
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            _LOGGER.error("a rollout could not be written: %s", why, exc_info=True)
            end = [self.tokenizer.eos_token_id]
            return AgentLoopOutput(
                prompt_ids=end, response_ids=end, response_mask=[1], response_logprobs=[0.0], reward_score=0.0,
                metrics=AgentLoopMetrics(), extra_fields={KEY: json.dumps({FAILED: why}), "reward_extra_info": {}},
            )  # fmt: skip

    async def _written(self, sampling_params: dict[str, Any], row: dict[str, Any]) -> AgentLoopOutput:
        self.protocol = run_protocol(self.run_config)
        prompt_ids = self.protocol.prompt(str(row["raw_prompt"][-1]["content"]))
        limit, room = int(self.rollout_config.response_length), int(self.rollout_config.prompt_length)
        if len(prompt_ids) > room:
            raise InputError(f"`data.max_prompt_length` must hold every prompt; got {room} for {len(prompt_ids)}.")
        dialogue = Dialogue(prompt_ids, self.protocol.environment(str(row["reward_model"]["ground_truth"])))
        logprobs: list[float] = []
        said: dict[str, Any] = {}
        request = uuid4().hex
        while True:
            left = limit - len(dialogue.ids)
            written = await self.server_manager.generate(
                request_id=request, prompt_ids=dialogue.context, sampling_params=self._sampling(sampling_params, left)
            )
            first = said.get("min_global_steps")
            said.update(written.extra_fields)
            if first is not None:
                said["min_global_steps"] = first  # the weights that began the rollout
            if sampling_params.get("logprobs") and written.log_probs is None:
                raise StepCreditError(
                    "the rollout server gave no log-probabilities, which calculate_log_probs asks for."
                )
            turn = list(written.token_ids)[:left]
            logprobs += (written.log_probs or [0.0] * len(turn))[: len(turn)]
            asks = bool(turn) and self.protocol.asks(turn)
            dialogue.finished = bool(turn) and turn[-1] in self.ends and not asks
            reply = self.protocol.reply(dialogue, turn, left - len(turn)) if asks and left > len(turn) else None
            dialogue.add(turn, policy=True)
            dialogue.turns += 1
            dialogue.add(reply or [], policy=False)
            logprobs += [0.0] * len(reply or [])
            if not reply or len(dialogue.ids) >= limit:
                break
        return self._output(dialogue, logprobs if sampling_params.get("logprobs") else None, said)

    def _sampling(self, params: dict[str, Any], left: int) -> dict[str, Any]:
        stops = sorted(self.protocol.stop_ids)
        return {**params, "max_tokens": left, **({"stop_token_ids": stops} if stops else {})}

    def _output(self, dialogue: Dialogue, logprobs: list[float] | None, said: dict[str, Any]) -> AgentLoopOutput:
        said["finished"] = dialogue.finished
        if not all(dialogue.mask):
            text = self.tokenizer.decode(dialogue.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            spans = policy_turns(token_offsets(self.tokenizer, dialogue.ids, text), dialogue.mask)
            said["turns"] = [list(span) for span in spans]
        return AgentLoopOutput(
            prompt_ids=dialogue.prompt_ids, response_ids=dialogue.ids, response_mask=dialogue.mask,
            response_logprobs=logprobs, num_turns=2 * dialogue.turns, metrics=AgentLoopMetrics(),
            extra_fields={"turn_scores": [], "tool_rewards": [], **said},
        )  # fmt: skip
