"""Compile Triton kernels for a Hopper GPU on any machine, and read what the compiler says of registers and memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One kernel with the types of its arguments.

    Args:
        name: shown when it fails.
        kernel: a `@triton.jit` function.
        arguments: type by argument name, such as "*bf16", "i32", "fp32"; names of tl.constexpr are left out. Pointers
            and "i32" are taken as multiples of 16 unless the type is written "i32!" or "*bf16!".
        constants: values of the tl.constexpr arguments (and of arguments fixed to None or 1).
        num_warps, num_stages: as launched.
        spill_bytes: registers that may be spilled to local memory, 0 unless measured to be harmless.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    spill_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """Registers a thread, bytes of local memory a thread (spills), shared memory in bytes, and the PTX."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    ptx: str


def compile_for_hopper(case: CompileCase) -> Compiled:
    """Compile one case to machine code for compute capability 9.0; needs no GPU, and not the interpreter."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    names = case.kernel.arg_names
    signature = {name: case.arguments.get(name, "constexpr").rstrip("!") for name in names}
    aligned = [i for i, name in enumerate(names) if case.arguments.get(name, "!")[-1] != "!"]
    source_type = GluonASTSource if case.kernel.is_gluon() else ASTSource
    source = source_type(
        case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned if signature[names[i]][0] in "*i"},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return Compiled(
        registers=int(found["REG"]),
        spill_bytes=int(found["STACK"]) + int(found["LOCAL"]),
        shared_bytes=int(compiled.metadata.shared),
        ptx=compiled.asm["ptx"],
    )
