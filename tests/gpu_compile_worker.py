"""Compiles every kernel for a GPU that is not there, with each of its constants, up to Triton's own typed form."""

import importlib
import itertools
import json
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {
    "i64": "begin end first stop length order edges starts longest sources targets sizes counts varying changing count",
    "fp64": "center slope each divisors cut average eta beta so_far largest means squared openings "
    "mean squares least greatest sums",
    "u8": "mask covers counted opens",
    "i32": "places bad",
}
FILES = ("checks", "chunks", "density", "moments", "returns", "rows", "step_advantage")


def signature(kernel: Any, numbers: str, constants: dict[str, Any]) -> dict[str, str]:
    """The type of each argument."""
    known = {name: kind for kind, names in TYPES.items() for name in names.split()}
    known |= {"firsts": "fp64", "steps": "i64", "out": "fp32", "values": "fp32"}
    known |= dict.fromkeys(("x", "policy", "ref"), numbers)
    return {p.name: "constexpr" if p.name in constants else f"*{known[p.name]}" for p in kernel.params}


def typed(kernel: Any, numbers: str, constants: dict[str, Any]) -> None:
    """Raises where the kernel is none."""
    import triton
    from triton._C.libtriton import ir

    source = ASTSource(
        kernel, signature(kernel, numbers, constants), {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    )
    backend = triton.compiler.make_backend(GPUTarget("cuda", 80, 32))
    options = backend.parse_options({})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(
        GPUTarget("cuda", 80, 32),
        options,
        backend.get_codegen_implementation(options),
        backend.get_module_map(),
        context,
    )


compiled, failed = [], {}
for file in FILES:
    module = importlib.import_module(f"stepcredit.ops.kernels.gpu.{file}")
    for name, kernel in vars(module).items():
        if not isinstance(kernel, JITFunction) or not name.startswith("_"):
            continue
        flags = [p.name for p in kernel.params if p.name.isupper() and p.name != "BLOCK"]
        for values in itertools.product([False, True], repeat=len(flags)):
            for numbers in ("fp32", "bf16"):
                constants = {**dict(zip(flags, values, strict=True)), "BLOCK": 1024}
                what = f"{file}.{name} {numbers} {constants}"
                try:
                    typed(kernel, numbers, constants)
                    compiled.append(what)
                except Exception as error:
                    failed[what] = f"{type(error).__name__}: {error}"
print(json.dumps({"compiled": compiled, "failed": failed}))
