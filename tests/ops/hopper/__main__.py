"""`python -m tests.ops.hopper NAME`: compile the cases of one op and print a JSON row each."""

from __future__ import annotations

import importlib
import json
import re
import sys

from tests.ops.compiling import compile_for_hopper

MEMORY = re.compile(r"\b(?:ld\.global|st\.global|ld\.volatile\.global|cp\.async|red\.|atom\.)")


def _waits(ptx: str) -> bool:
    """Whether an overlapped kernel waits for the one before it before it touches memory."""
    first = MEMORY.search(ptx)
    return first is not None and 0 <= ptx.find("griddepcontrol.wait") < first.start()


def main() -> None:
    for case in importlib.import_module(f"tests.ops.hopper.{sys.argv[1]}").CASES:
        made = compile_for_hopper(case)
        row = {
            "name": case.name,
            "registers": made.registers,
            "spill_bytes": made.spill_bytes,
            "allowed_spill_bytes": case.spill_bytes,
            "shared_bytes": made.shared_bytes,
            "wgmma": "wgmma.mma_async" in made.ptx,
            "tma": "cp.async.bulk.tensor" in made.ptx,
            "waits": _waits(made.ptx) if case.constants.get("OVERLAP") else True,
        }
        print(json.dumps(row), flush=True)


main()
