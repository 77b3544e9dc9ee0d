"""Compiled forms of what the estimators do token by token, for large batches on the CPU: the extra ``fast``.

The torch functions of `stepcredit.ops` and `stepcredit.shaping` are the definition, and what runs without Numba. A
kernel is a second form of one of them: it reads [batch, time] or packed tensors where they stand, row by row, writes
credit into its place, and keeps no number per token beside it. Sums are float64.

A kernel is compiled when it is first called with its dtypes. Numba keeps the result in ``__pycache__`` beside the
kernel's file, where that cannot be written in the user's cache directory (``~/.cache/numba`` on Linux), or in
``NUMBA_CACHE_DIR``; where none can be written, each process compiles anew.

Kernels run on as many threads as `torch.get_num_threads` says, started for the call: no pool outlives it, so that a
process may fork as it may with torch alone.

The environment variable ``STEPCREDIT_KERNELS`` chooses: "auto" (the default: from `LEAST_TOKENS` on, if Numba is
installed), "always" (at any size) or "never".
"""

from stepcredit.ops.kernels.choosing import LEAST_TOKENS, refusal, using

__all__ = ["LEAST_TOKENS", "refusal", "using"]
