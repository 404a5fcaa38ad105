"""Contexts on disk: one safetensors file with tensors and a JSON header; nothing in it is ever executed."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longspan.engine.run import Run
from longspan.engine.store import LayerStore, Slab
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from longspan.engine.context import Context
    from longspan.engine.model import SpanModel

FORMAT = 1


def save_context(context: Context, path: str | Path) -> None:
    """Write a context; the file appears whole or not at all."""
    run = context.run
    tensors: dict[str, Tensor] = {"token_ids": run.ids}
    if run.origin is not None:
        tensors["origin"] = run.origin
    slabs = []
    for i, layer in enumerate(run.layers):
        for j, slab in enumerate(layer.slabs):
            facts, parts = slab.pack()
            slabs.append({"layer": i, **facts})
            tensors.update({f"layer.{i}.slab.{j}.{name}": part for name, part in parts.items()})
    states = [
        {
            "key": list(key),
            "values": {name: _pack(value, f"state.{n}.{name}", tensors) for name, value in state.items()},
        }
        for n, (key, state) in enumerate(run.states.items())
    ]
    header = {
        "format": FORMAT,
        "spec": run.plan.spec,
        "model": context.model.name,
        "fingerprint": context.model.info.fingerprint,
        "seen": run.seen,
        "phase": run.phase,
        "chunk_tokens": run.chunk_tokens,
        "peak_bytes": run.peak_bytes,
        "read_seconds": context.read_seconds,
        "slabs": slabs,
        "states": states,
    }
    target = Path(path)
    if not target.parent.is_dir():
        raise UserInputError(f"there is no folder {target.parent} to save {target.name} in; make it first")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    if target.is_dir():
        raise UserInputError(f"{target} is a folder; give a file to save in, such as {target / 'book.span'}")
    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            partial,
            {"longspan": json.dumps(header)},
        )
        os.replace(partial, target)
    except (SafetensorError, OSError) as error:
        # safetensors wraps what the system said; the user knows the file, not the temporary one beside it.
        raise UserInputError(
            f"cannot save the context in {target} ({error}); free some space, or save in another place"
        ) from error
    finally:
        with suppress(OSError):  # on a read-only disk there is none, and asking is an error of its own
            partial.unlink(missing_ok=True)


def open_context(path: str | Path, model: SpanModel) -> Context:
    """Read a saved context for a model with the same weights and spec.

    Raises:
        UserInputError: no such file, not a context, or made with other weights or another spec.
    """
    from longspan.engine.context import Context

    if not Path(path).is_file():
        raise UserInputError(f"there is no file {path}; give the path that context.save wrote")
    try:
        with safe_open(str(path), framework="pt", device=str(model.info.device)) as file:
            header = json.loads((file.metadata() or {}).get("longspan", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserInputError(f"{path} is not a saved context (or is cut short); save it again") from error
    _check(header, path, model)
    try:
        return Context(model, _rebuild(header, tensors, model), dict(header["read_seconds"]))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserInputError(
            f"{path} is a damaged context ({error!r} does not fit); read the text again and save it"
        ) from error


def _check(header: Any, path: str | Path, model: SpanModel) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserInputError(
            f"{path} is no context of this version of longspan; read the text again and save it"
        )
    if header.get("fingerprint") != model.info.fingerprint:
        raise UserInputError(
            f"{path} was made with other weights ({header.get('model')}) than {model.name}; open it with the model that made it"
        )
    if header.get("spec") != model.spec:
        raise UserInputError(
            f"{path} was made under {header.get('spec')!r}, the model runs {model.spec!r}; load the model with the same methods"
        )


def _rebuild(header: dict[str, Any], tensors: dict[str, Tensor], model: SpanModel) -> Run:
    layers: list[LayerStore] = [LayerStore([]) for _ in model.plan.layers]
    for entry in header["slabs"]:
        store = layers[entry["layer"]]
        at = f"layer.{entry['layer']}.slab.{len(store.slabs)}."
        parts = {name.removeprefix(at): part for name, part in tensors.items() if name.startswith(at)}
        store.slabs.append(Slab.unpack(entry, parts))
    states = {
        tuple(state["key"]): {name: _unpack(value, tensors) for name, value in state["values"].items()}
        for state in header["states"]
    }
    return Run(
        plan=model.plan,
        chunk_tokens=header["chunk_tokens"],
        layers=layers,
        states=states,
        seen=header["seen"],
        phase=header["phase"],
        token_ids=[tensors["token_ids"].cpu()],
        origin=tensors["origin"].cpu() if "origin" in tensors else None,
        peak_bytes=header["peak_bytes"],
    )


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    return {"value": value}


def _unpack(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    return tensors[value["tensor"]] if "tensor" in value else value["value"]
