r"""Published process reward models as signals: how likely a trained judge thinks each step correct.

A preset says how a family of models is fed and read. What it takes to feed one needs its tokenizer alone:

    layout = make_layout(preset, tokenizer, separator=None)   # a name in `PRESETS`, or a `Preset`
    ids, marks = layout.encode(problem, steps)                # one mark a step: the position where its score is read
    inputs = layout.inputs(problem, steps)                    # the same as one `Input` for each forward pass
    scores = PRESETS[preset].read(rows)                       # rows of logits [steps, labels] to scores [steps]
    ids = PRESETS[preset].label_ids(tokenizer)                # where the labels are words of the vocabulary

    ids, marks = separated(tokenizer, problem, steps, separator)   # what a model trained with TRL is fed

`PRM` is the signal. A folder of one's own weights says how it is fed in the file `stepcredit_prm.json`:
``{"preset": "trl", "separator": "\n"}``.
"""

from stepcredit.signals.prm.layouts import Input, Layout, separated
from stepcredit.signals.prm.presets import PRESETS, Preset, make_layout
from stepcredit.signals.prm.signal import PRM

__all__ = ["PRESETS", "PRM", "Input", "Layout", "Preset", "make_layout", "separated"]
