"""One published credit scheme a file, composed from `stepcredit.shaping` and `stepcredit.ops`."""

from stepcredit.estimators.base import Assignment, Estimator
from stepcredit.estimators.compacted import Compacted
from stepcredit.estimators.dr_grpo import DrGRPO
from stepcredit.estimators.gdpo import GDPO
from stepcredit.estimators.grpo import GRPO
from stepcredit.estimators.grpo_process import GRPOProcess
from stepcredit.estimators.papo import PAPO
from stepcredit.estimators.pass_ import PASS
from stepcredit.estimators.prime import PRIME
from stepcredit.estimators.reinforce_pp import REINFORCEpp
from stepcredit.estimators.reward_sum import RewardSum
from stepcredit.estimators.rloo import RLOO
from stepcredit.estimators.spro import SPRO
from stepcredit.estimators.streams import StreamScheme

ESTIMATORS: dict[str, type[Estimator]] = {
    scheme.type: scheme for scheme in (GRPO, DrGRPO, RLOO, REINFORCEpp, GDPO, PAPO, GRPOProcess, PASS, SPRO, PRIME)
}
"""The built-in schemes by their `type`, the name that configs and the command line use."""

__all__ = [
    "ESTIMATORS", "GDPO", "GRPO", "PAPO", "PASS", "PRIME", "RLOO", "SPRO",
    "Assignment", "Compacted", "DrGRPO", "Estimator", "GRPOProcess", "REINFORCEpp", "RewardSum", "StreamScheme",
]  # fmt: skip
