"""The public face of the pure functions: every formula once, callable alone.

Token functions take packed values, all rollouts' tokens in one axis. From a padded tensor and its mask::

    rows = Segments.from_mask(mask)                     # every row must hold a True
    advantages = torch.zeros_like(x)
    advantages[mask] = return_to_go(x[mask], rows)

Functions that compare values take a `Pool`, which says who is compared with whom: ``Pool.of(group_ids)``.
"""

from stepcredit.ops.groups import Pool
from stepcredit.ops.logprobs import gopd, kl_k1, kl_k2, kl_k3, log_ratio, opd
from stepcredit.ops.returns import return_so_far, return_to_go
from stepcredit.ops.scaling import (
    abs_max_scale,
    abs_max_scaler,
    center,
    leave_one_out,
    on_rollouts,
    standardize,
    standardizer,
    whiten,
    whitener,
)
from stepcredit.ops.segments import Segments
from stepcredit.shaping.chunks import change_points, chunk_by_value, group_average
from stepcredit.shaping.density import chunk_values, divide_length
from stepcredit.shaping.fusion import advantage_fusion, scale_in_union, scaler
from stepcredit.shaping.step_advantage import masked_step_advantage, process_return
from stepcredit.shaping.token_baseline import token_leave_one_out

__all__ = [
    "Pool",
    "Segments",
    "abs_max_scale",
    "abs_max_scaler",
    "advantage_fusion",
    "center",
    "change_points",
    "chunk_by_value",
    "chunk_values",
    "divide_length",
    "gopd",
    "group_average",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "leave_one_out",
    "log_ratio",
    "masked_step_advantage",
    "on_rollouts",
    "opd",
    "process_return",
    "return_so_far",
    "return_to_go",
    "scale_in_union",
    "scaler",
    "standardize",
    "standardizer",
    "token_leave_one_out",
    "whiten",
    "whitener",
]
