"""How a run's rollouts are sampled: by TRL, by our own sampler, or turn by turn against an environment."""

from functools import partial
from typing import Any

from stepcredit.errors import InputError
from stepcredit.runs.conversing import TurnProtocol, token_count
from stepcredit.runs.grouped import GroupedSampler
from stepcredit.runs.protocols import OneTurn, TagProtocol
from stepcredit.runs.searching import SearchSampler
from stepcredit.runs.tools import SearchTool, ToolProtocol


def rollout_arguments(sampler: str, settings: Any, protocol: TurnProtocol, reference: str) -> dict[str, Any]:
    """The trainer's arguments that say how rollouts come about.

    Args:
        sampler: The run's, "trl" or "grouped".
        settings: TRL's settings; with tools they get a limit of calls where they have none.
        protocol: How the policy talks.
        reference: An example's, from which an environment is made once, so that a wrong setting shows at the start.

    Raises:
        InputError: The sampler cannot do what the protocol needs, or the task cannot make an environment.
    """
    protocol.environment(reference)
    if isinstance(protocol, OneTurn):
        return {"rollout_func": GroupedSampler() if sampler == "grouped" else None}
    if isinstance(protocol, TagProtocol):
        if sampler != "grouped":
            raise InputError(
                f"`run.sampler` must be 'grouped' where a policy without a chat template searches; got {sampler!r}."
            )
        return {"rollout_func": SearchSampler(protocol)}
    assert isinstance(protocol, ToolProtocol)
    if sampler != "trl":
        raise InputError(f"`run.sampler` must be 'trl' where a policy with a chat template searches; got {sampler!r}.")
    if settings.max_tool_calling_iterations is None:
        settings.max_tool_calling_iterations = protocol.task.searches + 1
    return {"environment_factory": partial(SearchTool, protocol.task, token_count(protocol.tokenizer))}
