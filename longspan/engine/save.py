"""Contexts on disk: what a context is in a header and tensors, and back; the file itself is `span_file`'s.

A context opens under the weights, the element type, the tokenizer and the spec that it was read with, and under no others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from longspan import __version__
from longspan.engine.lazy import LayerLoader
from longspan.engine.prefix import can_be_cropped
from longspan.engine.run import Run
from longspan.engine.span_file import SpanFile, put_in_place, written_beside
from longspan.engine.squeeze import check_level, squeeze, unsqueeze
from longspan.engine.store import LayerStore, Slab
from longspan.errors import UserInputError

if TYPE_CHECKING:
    from longspan.engine.context import Context
    from longspan.engine.model import SpanModel
    from longspan.engine.plan import Plan

_TOKENIZERS: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def save_context(context: Context, path: str | Path, *, level: int | None = None) -> None:
    """Write a context, exactly or at a level of CacheGen's codec; the file appears whole or not at all.

    Raises:
        UserInputError: no such folder, a folder stands in its place, no such level, or the disk does not take it.
    """
    target = Path(path)
    if target.is_dir():
        raise UserInputError(f"{target} is a folder; give a file to save in, such as {target / 'book.span'}")
    if not target.parent.is_dir():
        raise UserInputError(f"there is no folder {target.parent} to save {target.name} in; make it first")
    if level is not None:
        check_level(level)
    with saved_beside(target, *pack_context(context, level)) as partial:
        put_in_place(partial, target)


def open_context(
    path: str | Path, model: SpanModel, *, lazy: bool = False, deadline_seconds: float | None = None
) -> Context:
    """Read a saved context for the model that made it.

    Args:
        path: what `context.save` wrote; or a folder that `longspan.storage.contexts.publish_context` wrote, or the address that it
            is served at, from where it comes chunk by chunk, see `stream_context` there.
        model: the same weights, tokenizer and spec.
        deadline_seconds: of what is published: chunks come at the finest level that is in time for this. None for what the
            model would have read.
        lazy: return once the header is checked; layers are then loaded and checked in their order in the background, and a
            question waits for a layer when it gets there. Where a method reads again for each question, or holds tokens
            in a form of its own, everything is loaded first.

    Raises:
        UserInputError: no such file, not a context, made with other weights, another tokenizer or another spec, or damaged.
            With `lazy`, damage to a layer is raised by the call that needs it.
        ConnectionError: the server of what is published cannot be reached.
    """
    from longspan.storage.contexts import is_published, stream_context

    if is_published(path):
        if lazy:
            raise UserInputError(
                f"got lazy=True for {path}, which comes chunk by chunk, each with all layers; leave lazy out"
            )
        return stream_context(path, model, deadline_seconds=deadline_seconds).context
    if deadline_seconds is not None:
        raise UserInputError(
            f"got deadline_seconds={deadline_seconds} for the file {path}, which is read as it is; give a published folder or its "
            "address, or leave deadline_seconds out"
        )
    return context_of(SpanFile(path), model, lazy=lazy)


@contextmanager
def saved_beside(target: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """`span_file.written_beside`, with the system's words in a sentence about the file that the user knows."""
    try:
        with written_beside(target, header, tensors) as partial:
            yield partial
    except OSError as error:
        raise UserInputError(
            f"cannot save the context in {target} ({error.strerror or error}); free some space, or save in another place"
        ) from error


def pack_context(context: Context, level: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A context as a header for JSON, and tensors by name; see `save_context`."""
    run, model = context.run, context.model
    tensors: dict[str, Tensor] = {"token_ids": run.ids}
    if run.origin is not None:
        tensors["origin"] = run.origin
    slabs = []
    shared: dict[Any, str] = {}  # layers may share a tensor, which is written once
    for i, layer in enumerate(run.layers):
        for j, slab in enumerate(layer.slabs):
            facts, parts = slab.pack()
            if level is not None:
                facts, parts = squeeze(facts, parts, level=level, layer=i, num_layers=len(run.layers))
            names = {}
            for name, part in parts.items():
                place = part.data_ptr(), part.shape, part.stride(), part.dtype
                names[name] = shared.setdefault(place, f"layer.{i}.slab.{j}.{name}")
                tensors[names[name]] = part
            slabs.append({"layer": i, "facts": facts, "tensors": names})
    states = [
        {
            "key": list(key),
            "values": {name: _pack(value, f"state.{n}.{name}", tensors) for name, value in state.items()},
        }
        for n, (key, state) in enumerate(run.states.items())
    ]
    header = {
        "longspan": __version__,
        "model": model.name,
        "fingerprint": model.info.fingerprint,
        "dtype": dtype_name(model.info.dtype),
        "tokenizer": tokenizer_hash(model.tokenizer),
        "spec": run.plan.spec,
        "whole": context.whole and level is None,
        "croppable": can_be_cropped(run),
        "seen": run.seen,
        "positions": [0, run.seen],
        "phase": run.phase,
        "chunk_tokens": run.chunk_tokens,
        "peak_bytes": run.peak_bytes,
        "read_seconds": context.read_seconds,
        "slabs": slabs,
        "states": states,
    }
    return header, tensors


def context_of(file: SpanFile, model: SpanModel, *, lazy: bool = False) -> Context:
    """The context in an open file; see `open_context`."""
    from longspan.engine.context import Context

    check_made_by(model, str(file.path), file.header)
    header = file.header
    try:
        run = _rebuild(file, model, lazy=lazy and _layer_by_layer(model.plan))
        return Context(model, run, dict(header["read_seconds"]), whole=header["whole"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise file.damaged(f"{error!r} does not fit") from error


def tokenizer_hash(tokenizer: Any) -> str | None:
    """SHA-256 of what makes a tokenizer's ids: its serialised form, or the vocabulary of one that has none."""
    if tokenizer is None:
        return None
    size, known = _TOKENIZERS.get(tokenizer, (0, ""))
    if known and size == len(tokenizer):
        return known
    if getattr(tokenizer, "is_fast", False):
        facts = json.loads(tokenizer.backend_tokenizer.to_str())
        for setting in ("truncation", "padding"):  # set anew by each call
            facts.pop(setting, None)
    else:
        facts = tokenizer.get_vocab()
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    _TOKENIZERS[tokenizer] = len(tokenizer), found
    return found


def check_made_by(model: SpanModel, path: str, header: Mapping[str, Any]) -> None:
    """UserInputError where the header of what is saved at `path` tells of other weights, element type, tokenizer or spec."""
    if header.get("fingerprint") != model.info.fingerprint:
        raise UserInputError(
            f"{path} was made with other weights ({header.get('model')}) than {model.name}; open it with the model that made it"
        )
    if header.get("dtype") != dtype_name(model.info.dtype):
        raise UserInputError(
            f"{path} was made in {header.get('dtype')}, the model runs in {dtype_name(model.info.dtype)}; "
            f"load the model with dtype={header.get('dtype')!r}"
        )
    saved, mine = header.get("tokenizer"), tokenizer_hash(model.tokenizer)
    if saved != mine and saved is not None and mine is not None:
        raise UserInputError(
            f"{path} was made with another tokenizer than that of {model.name}; load the model with the tokenizer that made it"
        )
    if header.get("spec") != model.spec:
        raise UserInputError(
            f"{path} was made under {header.get('spec')!r}, the model runs {model.spec!r}; load the model with the same methods"
        )


def _layer_by_layer(plan: Plan) -> bool:
    """Does a question use the layers one after another? Not where a method reads again for it, or decodes what layers share."""
    return plan.reading_name is None and all(layer.codec is None for layer in plan.layers)


def _rebuild(file: SpanFile, model: SpanModel, *, lazy: bool) -> Run:
    header, device = file.header, model.info.device
    entries: list[list[Any]] = [[] for _ in model.plan.layers]
    for entry in header["slabs"]:
        entries[entry["layer"]].append(entry)
    uses = Counter(name for entry in header["slabs"] for name in entry["tensors"].values())
    shared: dict[str, Tensor] = {}

    def tensor(name: str, *, copy: bool) -> Tensor:
        """On the CPU a map of the file unless it is copied."""
        if name in shared:
            return shared[name]
        found = file.tensor(name).to(device, copy=copy or uses[name] > 1)
        if uses[name] > 1:
            shared[name] = found
        return found

    def unpack(entry: dict[str, Any], *, copy: bool) -> Slab:
        parts = {name: tensor(place, copy=copy) for name, place in entry["tensors"].items()}
        slab = Slab.unpack(*unsqueeze(entry["facts"], parts, model.info.dtype))
        mapped = {parts[name].data_ptr() for name, place in entry["tensors"].items() if uses[place] == 1}
        if copy or device.type != "cpu" or not mapped & {x.data_ptr() for x in slab.tensors}:
            return slab
        return unpack(entry, copy=True)  # it would hold the map of a file that somebody may cut

    def load(index: int) -> list[Slab]:
        """The slabs of a layer; never more in memory than they and one slab's tensors."""
        try:
            return [unpack(entry, copy=False) for entry in entries[index]]
        except UserInputError:
            raise
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise file.damaged(f"layer {index}: {error!r} does not fit") from error

    states = {
        tuple(state["key"]): {
            name: tensor(value["tensor"], copy=True) if "tensor" in value else value["value"]
            for name, value in state["values"].items()
        }
        for state in header["states"]
    }
    token_ids = file.tensor("token_ids").clone()
    origin = file.tensor("origin").clone() if "origin" in file.names else None
    layers = (
        LayerLoader(load, len(entries)).start()
        if lazy
        else [LayerStore(load(index)) for index in range(len(entries))]
    )
    return Run(
        plan=model.plan,
        chunk_tokens=header["chunk_tokens"],
        layers=layers,
        states=states,
        seen=header["seen"],
        phase=header["phase"],
        token_ids=[token_ids],
        origin=origin,
        peak_bytes=header["peak_bytes"],
    )


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    return {"value": value}


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" and the like."""
    return str(dtype).removeprefix("torch.")
