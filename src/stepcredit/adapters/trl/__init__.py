"""TRL: token-level credit in the trainer's own loss, whatever its type.

Two methods of `GRPOTrainer` are overridden thinly, one to capture the rewards and one to replace the advantages; the
loss is TRL's. What TRL's loss cannot carry token by token is refused when the trainer is made.
"""

from stepcredit.adapters.trl.crediting import CreditStep
from stepcredit.adapters.trl.trainer import CreditGRPOTrainer, attach

__all__ = ["CreditGRPOTrainer", "CreditStep", "attach"]
