"""Another causal language model's view of sampled tokens: a teacher, or the base model of generalized distillation."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch

from stepcredit.batch import Rollouts
from stepcredit.errors import InputError
from stepcredit.options import check_option
from stepcredit.signals.alignment import SharedSpan, onto_policy_tokens, shared_spans
from stepcredit.signals.causal import sequence_logprobs
from stepcredit.signals.offsets import token_offsets
from stepcredit.signals.vocabulary import vocabulary_difference


class CausalLM:
    """Scores the policy's tokens under a causal language model, whose tokenizer may be another.

    With the policy's own vocabulary, the model reads the very ids: the prompt's as the policy was given them, and the
    completion's. With another, it reads the text: the prompt in its own chat template, the completion by its own
    tokenizer; what it says is put on the policy's tokens by `onto_policy_tokens`. The last token of a completion that
    writes nothing, as an end of sequence, meets the model's own end of sequence; other special tokens of the policy
    are unknown to the model.

    Attributes:
        difference: The first id that the tokenizers read differently, in words; None: the vocabulary is the same.
        requires: The fields of `Rollouts` that it reads beside prompts and completions.
        unmatched: The number of response tokens, over all calls, that the model knows nothing about and that have the
            policy's own log-probability: special tokens inside completions, and tokens of a span that only partly
            belongs to the response.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        policy_tokenizer: Any,
        temperature: float = 1.0,
        batch_tokens: int = 8192,
        chunk: int = 256,
    ) -> None:
        """Takes a loaded model; it is put in eval mode.

        Args:
            model: A causal language model of Transformers, or Peft's around one.
            tokenizer: Its fast tokenizer.
            policy_tokenizer: The tokenizer of the policy whose tokens it is to score.
            temperature: As for `sequence_logprobs`, like the next two.
            batch_tokens: The most tokens, padding included, of one forward pass.
            chunk: How many tokens' logits exist at a time.

        Raises:
            InputError: A number out of its range.
        """
        check_option("CausalLM", "temperature", temperature, float, {"above": 0})
        check_option("CausalLM", "batch_tokens", batch_tokens, int, {"at_least": 1})
        check_option("CausalLM", "chunk", chunk, int, {"at_least": 1})
        self.model, self.tokenizer, self.policy_tokenizer = model.eval(), tokenizer, policy_tokenizer
        self.difference = vocabulary_difference(policy_tokenizer, tokenizer)
        other = frozenset({"offsets", "old_logprobs"}) if self.difference is not None else frozenset()
        self.requires: frozenset[str] = frozenset({"token_ids"}) | other
        self.unmatched = 0
        self._options: dict[str, Any] = {"temperature": temperature, "batch_tokens": batch_tokens, "chunk": chunk}

    def __repr__(self) -> str:
        kind = "the policy's vocabulary" if self.difference is None else "a vocabulary of its own"
        return f"CausalLM({type(self.model).__name__}, {kind})"

    def logprobs(self, rollouts: Rollouts) -> list[list[float]]:
        """The log-probability of each completion token, nats.

        Args:
            rollouts: Must have ``token_ids``; where the vocabulary is not the policy's, ``offsets`` and
                ``old_logprobs`` as well. ``prompt_ids`` are read if the vocabulary is the same, else ``messages`` if
                there are some and the model has a chat template, else the prompt's text.

        Returns:
            For each rollout one number a token: for a token of the response the model's, or the policy's own where it
            is `unmatched`; for a masked one anything finite.

        Raises:
            InputError: A field is missing, the model's tokenizer does not give a completion's text back, or what
                `sequence_logprobs` refuses; a log-probability is not finite.
        """
        for field in sorted(self.requires):
            if getattr(rollouts, field) is None:
                why = "" if self.difference is None else f" The model has a vocabulary of its own: {self.difference}."
                raise InputError(f"`{field}` must be in the rollouts for CausalLM; got None.{why}")
        return self._same(rollouts) if self.difference is None else self._aligned(rollouts)

    def _same(self, rollouts: Rollouts) -> list[list[float]]:
        """The ids as they are: the model's embeddings mean the same by them."""
        assert rollouts.token_ids is not None
        prompts = rollouts.prompt_ids
        if prompts is None:
            prompts = [self._prompt(rollouts, row) for row in range(len(rollouts))]
        return self._read(prompts, rollouts.token_ids)

    def _aligned(self, rollouts: Rollouts) -> list[list[float]]:
        """The text, in the model's own ids, and back on the policy's."""
        assert rollouts.old_logprobs is not None
        rows = range(len(rollouts))
        matched = [self._match(rollouts, row) for row in rows]
        read = self._read([self._prompt(rollouts, row) for row in rows], [ids for ids, _ in matched])
        found = []
        for row, (_, spans) in enumerate(matched):
            values = onto_policy_tokens(rollouts.old_logprobs[row], read[row], spans)
            kept = _response(rollouts, row)
            if not all(isfinite(value) for value, on in zip(values, kept, strict=True) if on):
                raise InputError(f"`old_logprobs` must be finite; got nan or infinity in row {row}.")
            found.append([value if on else 0.0 for value, on in zip(values, kept, strict=True)])
        return found

    def _match(self, rollouts: Rollouts, row: int) -> tuple[list[int], list[SharedSpan]]:
        """A completion in the model's own ids, and which of them spell what tokens of the response do."""
        assert rollouts.token_ids is not None
        assert rollouts.offsets is not None
        text, tokens, offsets = rollouts.completions[row], rollouts.token_ids[row], rollouts.offsets[row]
        ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        try:
            theirs = token_offsets(self.tokenizer, ids, text)
        except InputError as error:
            raise InputError(
                f"`tokenizer` must give every completion's text back; row {row} differs: {error}"
            ) from error
        special = set(self.policy_tokenizer.all_special_ids)
        silent = {t for t, (start, end) in enumerate(offsets) if start == end and tokens[t] in special}
        kept = [t for t in range(len(tokens)) if t not in silent]
        spans = [
            span._replace(policy=[kept[t] for t in span.policy])
            for span in shared_spans([offsets[t] for t in kept], theirs)
        ]
        last = len(tokens) - 1
        if last in silent and self.tokenizer.eos_token_id is not None:
            spans.append(SharedSpan(len(text), len(text), [last], [len(ids)]))
            ids.append(self.tokenizer.eos_token_id)
        response = _response(rollouts, row)
        spans = [span for span in spans if all(response[t] for t in span.policy)]
        self.unmatched += sum(response) - sum(len(span.policy) for span in spans)
        return ids, spans

    def _prompt(self, rollouts: Rollouts, row: int) -> list[int]:
        """What comes before the completion, in the model's own ids."""
        messages = None if rollouts.messages is None else rollouts.messages[row]
        if messages is None or not getattr(self.tokenizer, "chat_template", None):
            return list(self.tokenizer(rollouts.prompts[row])["input_ids"])
        return rendered(self.tokenizer, messages)

    def _read(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            rows = sequence_logprobs(self.model, prompts, completions, **self._options)
        for row, values in enumerate(rows):
            if not values.isfinite().all():
                raise InputError(f"`model` must give finite log-probabilities; got nan or infinity in row {row}.")
        return [values.tolist() for values in rows]


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids of chat messages in a tokenizer's own template, up to what opens the assistant's.

    Raises:
        InputError: The template refuses the messages.
    """
    from jinja2 import TemplateError  # Transformers needs it for any template

    try:
        ids = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InputError(f"`messages` must suit the model's chat template; got {roles}: {error}") from error
    return list(ids)


def _response(rollouts: Rollouts, row: int) -> list[bool]:
    """Whether each token is one that the policy sampled."""
    if rollouts.response_mask is not None:
        return [bool(on) for on in rollouts.response_mask[row]]
    assert rollouts.token_ids is not None
    return [True] * len(rollouts.token_ids[row])
