"""`longspan env`: what a number was measured with, for bug reports and result files."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from longspan.cli._output import JSON_HELP, console, write_json

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "triton")


def command(
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=JSON_HELP)] = None,
) -> None:
    """Show versions, devices, threads and the commit.

    Example: longspan env --json env.json
    """
    facts = environment()
    if json_file is not None:
        write_json(json_file, facts)
    if json_file is None or str(json_file) != "-":
        _print(facts)


def environment() -> dict[str, Any]:
    """Versions by package (None where absent), devices, threads, platform, the commit of a source tree, and which kernels
    can run here."""
    import torch

    from longspan import __version__
    from longspan.evaluation.provenance import commit
    from longspan.ops.backend import machine_backends

    devices = [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
        }
        for index in range(torch.cuda.device_count())
    ]
    return {
        "longspan": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "devices": devices,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backends": machine_backends(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if name == "devices":
            gpus = [f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB" for gpu in value]
            table.add_row("device", "; ".join(gpus) or "cpu")
        elif name == "backends":
            for backend, state in value.items():
                table.add_row(f"{backend} kernels", state)
        else:
            table.add_row(name.replace("_", " "), "none" if value is None else str(value))
    console().print(table)
