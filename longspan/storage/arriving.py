"""A run that chunks of a published context are put into, or read into by the model, one behind the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from longspan.storage.cachegen import decode_chunk
from longspan.storage.layout import MAGIC
from longspan.storage.published import Manifest
from longspan.storage.streaming import Costs

if TYPE_CHECKING:
    from longspan.engine.reader import ModelReader
    from longspan.engine.run import Run

# How fast the model reads is tried on 16 tokens, then 64, ..., until they take so long; what takes long is tried once.
_TRY_TOKENS, _TRY_SECONDS, _LONG_SECONDS = 16, 0.05, 0.25


class Arriving:
    """A run that chunks are put into, or read into, one behind the other."""

    def __init__(self, reader: ModelReader, manifest: Manifest) -> None:
        from longspan.engine.prefix import depends_on_cuts, serves_prefixes

        facts, plan, cut = manifest.facts, reader.plan, manifest.facts["cut_tokens"]
        total = sum(chunk.num_tokens for chunk in manifest.chunks)
        if not serves_prefixes(plan) or total != facts["seen"]:
            raise ValueError("it is not of a kind that can come in chunks; publish it again")
        if depends_on_cuts(plan) and cut % reader.chunk_tokens:
            raise ValueError(
                f"it is cut at every {cut} tokens, and under {plan.spec} it matters that the model reads {reader.chunk_tokens} at once; "
                f"load the model with chunk_tokens={facts['chunk_tokens']}"
            )
        self.reader, self.layers = reader, list(facts["layers"])
        self.counts = [chunk.num_tokens for chunk in manifest.chunks]
        self.number = 0
        self.run: Run = reader.new_run(num_tokens=total)

    def read(self, text: bytes, before: Sequence[Any]) -> None:
        """The model reads a chunk behind what is there."""
        from longspan.engine.reader import rechunk

        ids = ids_of(text)
        if len(ids) != self.counts[self.number]:
            raise ValueError(f"the text of chunk {self.number} has {len(ids)} tokens; publish it again")
        with _device(self.reader.info.device):
            for piece in rechunk([ids], self.reader.chunk_tokens):
                self.reader.advance(self.run, piece)
        self.number += 1

    def put(self, data: bytes) -> None:
        """The keys and values of a chunk are put behind what is there; all of them, or none and a ValueError."""
        info, run, new = self.reader.info, self.run, self.counts[self.number]
        found = exact_parts(data) if data[: len(MAGIC)] != MAGIC else decode_chunk(data)
        stores = [run.layers[index] for index in self.layers]
        layers = [run.plan.layers[index].info for index in self.layers]
        shapes = [(1, layer.num_kv_heads, new, layer.head_dim) for layer in layers]
        for parts in found:
            if [part.shape for part in parts] != shapes:
                raise ValueError(f"chunk {self.number} does not fit the model; publish it again")
        with _device(info.device):
            at = torch.arange(run.seen, run.seen + new, device=info.device)[None]
            for store, keys, values in zip(stores, *found, strict=True):
                k, v = keys.to(info.device, info.dtype), values.to(info.device, info.dtype)
                store.slabs[0].append(k, v, at, first=run.seen, reserve_tokens=run.reserve_tokens)
        run.seen += new
        self.number += 1


def tried_costs(reader: ModelReader, most_tokens: int) -> Costs:
    """How fast the model reads, as a first estimate: what some more tokens cost of a short text, tried at two lengths or more.
    It is rather too fast than too slow, since chunks that were read mend it, and chunks that came as bytes do not."""
    most = min(most_tokens, reader.chunk_tokens)
    vocabulary = reader.model.get_input_embeddings().num_embeddings

    def seconds(size: int) -> float:
        begun = time.perf_counter()
        logits = reader.advance(reader.new_run(), torch.arange(size) % vocabulary)
        assert logits is not None
        logits.cpu()  # waits for a GPU
        return time.perf_counter() - begun

    def best(size: int) -> float:
        took = seconds(size)
        return took if took > _LONG_SECONDS else min(took, seconds(size))

    size = min(_TRY_TOKENS, most)
    took = best(size)
    each, enough = took / size, _LONG_SECONDS
    while took < enough and size < most:
        fewer, before, size, enough = size, took, min(4 * size, most), _TRY_SECONDS
        took = best(size)
        each = max((took - before) / (size - fewer), took / size / 8)
    return Costs(recompute_seconds_per_token=each)


def exact_bytes(keys: Sequence[Tensor], values: Sequence[Tensor]) -> bytes:
    """Every bit of some layers' keys and values."""
    parts = {
        f"{name}{i}": x.clone(memory_format=torch.contiguous_format)
        for name, xs in zip("kv", (keys, values), strict=True)
        for i, x in enumerate(xs)
    }
    return save_tensors(parts)


def exact_parts(data: bytes) -> tuple[list[Tensor], list[Tensor]]:
    """What `exact_bytes` was given."""
    try:
        parts = load_tensors(data)
        layers = range(len(parts) // 2)
        return [parts[f"k{i}"] for i in layers], [parts[f"v{i}"] for i in layers]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"the bytes of a chunk cannot be read ({error}); publish it again") from error


def ids_bytes(ids: Tensor) -> bytes:
    return ids.cpu().numpy().astype("<u4").tobytes()


def ids_of(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, "<u4").astype(np.int64))


@contextmanager
def _device(device: torch.device) -> Iterator[None]:
    """Work of a thread of its own belongs to this device, and is done at the end of the block."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield
        torch.cuda.synchronize(device)
