"""Presets: how each family of published process reward models is fed and read."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from stepcredit.errors import InputError
from stepcredit.signals.prm.answers import AnswerLayout, PrefixLayout
from stepcredit.signals.prm.chat import ChatLayout, TurnsLayout
from stepcredit.signals.prm.fit import unfit
from stepcredit.signals.prm.heads import PublishedHead, ValueHead, two_layer_head
from stepcredit.signals.prm.layouts import Layout, SeparatedLayout
from stepcredit.signals.prm.readouts import first_number, label_probability, logistic, margin
from stepcredit.signals.prm.tagged import TaggedLayout
from stepcredit.signals.prm.words import Words

Output = Literal["labels", "vocabulary", "sequence", "log-ratio"]


@dataclass(frozen=True)
class Preset:
    """How a family of published process reward models is fed and read.

    Attributes:
        name: What configs call it.
        unit: What its scores are.
        output: What the model gives: "labels", a row of logits for each token from a head of its own; "vocabulary", a
            row over the vocabulary for each token; "sequence", one number an input; "log-ratio", log-probabilities
            of its tokens that are set against another model's.
        layout: Makes its `Layout` from the preset's name, a tokenizer, a separator and options.
        separator: What ends every step in the model's input; empty: nothing does.
        labels: The number of labels, or the words of the vocabulary that are the labels, in order.
        read: From the logits where scores are read, [steps, labels], to scores, [steps].
        head: The published head where it is none that Transformers has.
        options: Which of `PRM`'s options are for this family alone.
    """

    name: str
    unit: str
    output: Output
    layout: Callable[..., Layout]
    separator: str
    labels: int | tuple[str, ...]
    read: Callable[[Tensor], Tensor]
    head: PublishedHead | None = None
    options: frozenset[str] = frozenset()

    def label_ids(self, tokenizer: Any) -> list[int]:
        """The ids of the labels that are words of the vocabulary, in the order in which `read` takes their logits.

        Raises:
            InputError: A label is not one known token of this tokenizer.
        """
        ids = []
        for label in () if isinstance(self.labels, int) else self.labels:
            found = Words(tokenizer).token(label)
            if found is None:
                fact = repr(tokenizer.tokenize(label, add_special_tokens=False))
                raise unfit(self.name, tokenizer.name_or_path, f"one token for the label {label!r}", fact)
            ids.append(found)
        return ids


CORRECT = "probability that the step is correct"
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_HEAD = PublishedHead("Qwen2ForProcessRewardModel", "score", two_layer_head)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "qwen2.5-math-prm", CORRECT, "labels", labels=2, read=label_probability, head=QWEN_HEAD,
            layout=partial(ChatLayout, system=QWEN_SYSTEM), separator="<extra_0>",
        ),
        Preset(
            "math-shepherd", CORRECT, "vocabulary", labels=("+", "-"), read=partial(label_probability, label=0),
            layout=partial(TaggedLayout, after_problem=" ", before_tag=" ", after_tag="\n", number=True),
            separator="ки",
        ),
        Preset(
            "skywork-o1", CORRECT, "labels", labels=1, read=logistic,
            head=PublishedHead("Qwen2ForPrmModel", "v_head", ValueHead),
            layout=partial(SeparatedLayout, bos="must", after="\n", one_token=True), separator="\n",
        ),
        Preset(
            "rlhflow", CORRECT, "vocabulary", labels=("+", "-"), read=partial(label_probability, label=0),
            layout=TurnsLayout, separator="+",
        ),
        Preset(
            "pure", "p(correct) - p(wrong) of the step, in [-1, 1]", "labels", labels=2, read=margin,
            layout=partial(SeparatedLayout, bos="none", one_token=True), separator="\n",
        ),
        Preset(
            "eurus-implicit", "nats times beta, of any size: log-ratio to the reference model, summed",
            "log-ratio", labels=1, read=first_number,
            layout=AnswerLayout, separator="\n\n",
            options=frozenset({"reference_model", "beta", "boundary", "cumulative"}),
        ),
        Preset(
            "trl", CORRECT, "labels", labels=2, read=label_probability,
            layout=SeparatedLayout, separator="\n", options=frozenset({"separator"}),
        ),
        Preset(
            "versaprm", CORRECT, "vocabulary", labels=("-", "+"), read=label_probability,
            layout=partial(TaggedLayout, after_problem=" \n\n"), separator=" \n\n\n\n",
        ),
        Preset(
            "reasonflux-prm", CORRECT, "labels", labels=2, read=label_probability, head=QWEN_HEAD,
            layout=ChatLayout, separator="<extra_0>",
        ),
        Preset(
            "universal-prm", CORRECT, "sequence", labels=1, read=logistic,
            layout=partial(PrefixLayout, system="You are a helpful assistant."), separator="\n\n",
            options=frozenset({"answers"}),
        ),
    )
}  # fmt: skip
"""The known families by the name that configs use.

Reference:
    - qwen2.5-math-prm: Zhang et al., The Lessons of Developing Process Reward Models in Mathematical Reasoning, arXiv
      2501.07301, and the card of Qwen/Qwen2.5-Math-PRM-7B.
    - math-shepherd: Wang et al., Math-Shepherd, arXiv 2312.08935, and the card of
      peiyi9979/math-shepherd-mistral-7b-prm.
    - skywork-o1: the code of SkyworkAI/skywork-o1-prm-inference.
    - rlhflow: the code of RLHFlow/RLHF-Reward-Modeling, ``math-rm/prm_evaluate.py``.
    - pure: Cheng et al., Stop Summation: Min-Form Credit Assignment Is All Process Reward Model Needs for Reasoning,
      arXiv 2504.15275, and the card of jinachris/PURE-PRM-7B.
    - eurus-implicit: Yuan et al., Free Process Rewards without Process Labels, arXiv 2412.01981, and the card of
      PRIME-RL/EurusPRM-Stage2.
    - trl: TRL's `PRMTrainer`; axolotl's ``stepwise_supervised`` with its separator.
    - versaprm: Zeng et al., VersaPRM, arXiv 2502.06737. How its separators stand between steps is inferred.
    - reasonflux-prm: Zou et al., ReasonFlux-PRM, arXiv 2506.18896.
    - universal-prm: Tan et al., AURORA, arXiv 2502.11520, and the card of infly/Universal-PRM-7B.

    All depart from their cards in text that spells a special token, which is text here, and in the white space around
    steps, which is dropped.
"""


def find_preset(preset: str | Preset) -> Preset:
    """A preset by its name; a `Preset` is its own.

    Raises:
        InputError: No such name; the nearest ones are given.
    """
    if isinstance(preset, Preset):
        return preset
    found = PRESETS.get(preset)
    if found is None:
        near = difflib.get_close_matches(str(preset), PRESETS, n=2, cutoff=0.5)
        told = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(PRESETS)}."
        raise InputError(f"`preset` must be the name of a family of PRMs; got {preset!r}; {told}")
    return found


def find_separator(preset: Preset, separator: str | None) -> str:
    """The separator that a preset's input has.

    Raises:
        InputError: One is asked for, other than the preset's own and where it is no option; or it is empty.
    """
    if separator is None or separator == preset.separator:
        return preset.separator
    if "separator" not in preset.options:
        raise InputError(
            f"`separator` must be None for the preset {preset.name!r}, whose separator is {preset.separator!r}; "
            f"got {separator!r}."
        )
    if not isinstance(separator, str) or not separator:
        raise InputError(f"`separator` must be a text for the preset {preset.name!r}; got {separator!r}.")
    return separator


def make_layout(preset: str | Preset, tokenizer: Any, *, separator: str | None = None, **options: Any) -> Layout:
    """What makes the input of a preset's models under a tokenizer; no model is needed.

    Args:
        preset: A name in `PRESETS`, or a preset.
        tokenizer: The checkpoint's tokenizer, of Transformers.
        separator: What ends every step, where the preset leaves it open; None: the preset's own.
        options: What else its layout leaves open: ``boundary`` of "eurus-implicit".

    Raises:
        InputError: No such preset; a separator that is not for it; a tokenizer that does not fit it.
    """
    found = find_preset(preset)
    return found.layout(found.name, tokenizer, find_separator(found, separator), **options)
