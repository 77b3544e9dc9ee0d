"""A task's prompt as a policy is given it: messages for a chat template, or plain text."""

from typing import Any

from stepcredit.errors import InputError
from stepcredit.tasks import Task


def render_prompt(tokenizer: Any, task: Task, prompt: str) -> str | list[dict[str, str]]:
    r"""A task's prompt as a policy is to be given it.

    Args:
        tokenizer: The policy's; what matters is whether it has a chat template.
        task: Says the instruction.
        prompt: The example's.

    Returns:
        With a chat template, messages: the instruction as the system's unless it is empty, the prompt as the user's.
        Without, text: the instruction and an empty line unless it is empty, then the prompt.

    Example:
        >>> from stepcredit.runs.tiny import tiny_tokenizer
        >>> from stepcredit.tasks import Arithmetic, Mathematics
        >>> render_prompt(tiny_tokenizer(), Arithmetic(), "a:3b:+5\n")
        'a:3b:+5\n'
        >>> render_prompt(tiny_tokenizer(), Mathematics(instruction="Think."), "1 + 1?")
        'Think.\n\n1 + 1?'
    """
    if getattr(tokenizer, "chat_template", None):
        system = [{"role": "system", "content": task.instruction}] if task.instruction else []
        return [*system, {"role": "user", "content": prompt}]
    return f"{task.instruction}\n\n{prompt}" if task.instruction else prompt


def encode_prompt(tokenizer: Any, task: Task, prompt: str) -> list[int]:
    r"""The ids of `render_prompt`, after which the policy's completion begins.

    Args:
        tokenizer: The policy's.
        task: Says the instruction.
        prompt: The example's.

    Returns:
        With a chat template, the ids up to and including what opens the assistant's message; without, what
        ``tokenizer(text)`` gives, its special tokens included.

    Raises:
        InputError: The chat template refuses the messages (some know no system message).

    Example:
        >>> from stepcredit.runs.tiny import tiny_tokenizer
        >>> from stepcredit.tasks import Arithmetic
        >>> encode_prompt(tiny_tokenizer(), Arithmetic(), "a:3\n")
        [1, 19, 7, 18]
    """
    rendered = render_prompt(tokenizer, task, prompt)
    if isinstance(rendered, str):
        return list(tokenizer(rendered)["input_ids"])
    from jinja2 import TemplateError  # Transformers needs it for any template

    try:
        encoded = tokenizer.apply_chat_template(rendered, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:
        roles = " and a ".join(message["role"] for message in rendered)
        said = " ".join(str(error).split())[:200]
        raise InputError(f"`policy` must have a chat template that takes a {roles} message; got {said!r}.") from error
    return list(encoded)
