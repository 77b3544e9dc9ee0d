"""verl on a CPU: small runs and tests of what is otherwise trained on GPUs. Off unless asked for.

verl's own plug-in loader imports this module in every process that imports verl. With ``STEPCREDIT_VERL_CPU=1`` in the
environment it registers a platform, a rollout engine (``actor_rollout_ref.rollout.name=stepcredit_cpu``) and a few
cures for what verl supposes of a device; without it, it does nothing. It is no way to train: generation is a plain loop
over a Transformers model, and weights are copied through Ray's object store.
"""

import os
import sys

SWITCH = "STEPCREDIT_VERL_CPU"

if os.environ.get(SWITCH) == "1":
    try:
        from stepcredit.adapters.verl_cpu.cures import install

        install()
    except Exception as error:  # verl logs what a plug-in raises at DEBUG, and goes on without the plug-in
        sys.stderr.write(f"stepcredit: verl gets no CPU platform: {error}\n")
        raise
