"""Compiled forms of what the estimators do token by token: by Numba for CPUs (the extra ``fast``), by Triton for GPUs.

The torch functions of `stepcredit.ops` and `stepcredit.shaping` are the definition, and what runs where no compiler is
installed. A kernel is a second form of one of them: it reads [batch, time] or packed tensors where they stand, row by
row, and writes credit into its place. Sums are float64. `stepcredit.ops.kernels.offered` says what kernels there are;
the packages ``cpu`` and ``gpu`` each have all of them, and a caller takes that of its tensors' device.

**On the CPU** a kernel is compiled when it is first called with its dtypes. Numba keeps the result in ``__pycache__``
beside the kernel's file, where that cannot be written in the user's cache directory (``~/.cache/numba`` on Linux), or
in ``NUMBA_CACHE_DIR``; where none can be written, each process compiles anew. Kernels run on as many threads as
`torch.get_num_threads` says, started at the first call that has work for them: they stay, and a forked process starts
its own.

**On a GPU** kernels are compiled when they are first called, and Triton keeps the results where it keeps its own. They
are launched on the current stream, and a call does not wait for them.

The environment variable ``STEPCREDIT_KERNELS`` chooses: "auto" (the default: from `LEAST_TOKENS` on, if the device's
compiler is installed), "always" (at any size), "never", or "interpreted": tensors on the CPU go through the kernels for
GPUs in Triton's interpreter, which is slow and for tests, and which ``TRITON_INTERPRET=1`` has to switch on before any
of them is loaded.
"""

from stepcredit.ops.kernels.choosing import LEAST_TOKENS, package, refusal, using

__all__ = ["LEAST_TOKENS", "package", "refusal", "using"]
