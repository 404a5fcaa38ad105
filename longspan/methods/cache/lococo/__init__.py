"""LoCoCo: a fixed number of slots takes in a text chunk by chunk, mixed by weights that a convolution over it makes.

After each chunk, of the slots and the new tokens those that the chunk's queries attended to most stay as they are. Each slot m
that is left begins as one of the next best and is mixed with all n that do not stay, x = [k; v] with k rotated:

    w_m = (1 - b) onehot(own token of m) + b softmax over n of  u_m . relu(conv(x A))
    k_m = w_m k,     v_m = w_m v

A narrows 2D channels to R, the convolution sees 21 neighbours, u_m weighs its R channels for slot m, and b is how much is
blended. All are each kv head's own and trained layer by layer, the model frozen, so that attention of the next chunk over
the slots gives what it gives over the whole past. The cache is the slots and at most one chunk, however long the text.

Paper: LoCoCo: Dropping In Convolutions for Long Context Compression (2024).

Differs from the paper: taken from the authors' code are the inputs of the convolution and its width, ReLU and softmax over
the sequence, b = 1/2 at first, the heavy hitters by attention of the last chunk's queries and their half of the slots, and that
rotated keys are mixed, so that slots have no position of their own. (Mixed before rotation and put at the position of the
slot's own token, the error of attention was 1.4 times as large in layer 1, and 3 to 6 % smaller in layers 4 and 6.) There the
convolution goes straight from 2D channels to slots, all heads alike: 172 thousand weights a layer for 128 slots of the reference
model. Here R = 16 channels stand between and u_m is interpolated between 16 trained ones, so that one small file serves any number
of slots. There the loss is that of the next chunk's tokens, and embeddings and norms are trained along. Here a quarter of
the slots holds the latest tokens; there none does by default, which predicts worse (3.59 against 3.52 nats a token
over nine passages, at 128 slots). Slots are made after each chunk, there before the next.

Fails when: something is asked for that drew no attention when it was read. Of it a trace in a blend is left: of five needles in 4,096
tokens, 512 slots answer about the one that stands among the latest tokens. Keeping the latest tokens alone, as `streaming`
does, predicts better what comes next: after 3,500 tokens of four passages of books the next 256 cost the reference model 3.23 nats
each with all of them, with 128 slots 3.45 (untrained 3.49, nothing blended 3.46) against 3.43 for streaming(keep=128), and
with 512 slots 3.30 (3.34, 3.31) against 3.29. Trained, b comes within about 0.1 of 0 in all but the first two layers:
choosing does most of the work, and blending brings less than a hundredth of a nat.

    model = longspan.load("reference", methods="lococo(slots=512)")
    context = model.read(open("long.txt"))
    context.ask("Who keeps the lantern?"), context.kept_tokens  # 512, however long the text
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longspan.eviction import attention_received
from longspan.methods._asset import check_made_for
from longspan.methods.cache._rotary import rotated, unrotated
from longspan.methods.cache.lococo.kernels import HOW, Kernels, load_kernels, save_kernels
from longspan.methods.cache.lococo.mixing import LayerKernels, check_shares, compress
from longspan.roles import Held, ModelInfo, Reader, Reading, Step, Storage

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CARD", "Kernels", "LoCoCo", "load_kernels", "save_kernels"]

CARD = {
    "title": "LoCoCo: Dropping In Convolutions for Long Context Compression",
    "year": 2024,
    "paper_id": 75,
    "family": "cache",
    "roles": ["Storage", "Reading"],
    "phase": "read",
    "training": "required",
    "exact": "when slots cover the text",
    "frees": "frees",
    "needs": [
        "kernels of the model, trained once by python -m longspan.methods.cache.lococo MODEL --text FILE --out FILE; those "
        "of the reference model are bundled"
    ],
    "claim": {},
    "shares": {  # of 4,096 tokens
        0.75: "lococo(slots=3072)",
        0.5: "lococo(slots=2048)",
        0.25: "lococo(slots=1024)",
        0.125: "lococo(slots=512)",
        0.06: "lococo(slots=246)",
    },
    "tolerances": {},
    "example": "lococo(slots=64, chunk_tokens=50, file=uniform)",
    "identity": "lococo(slots=1024, file=uniform)",
}

BUNDLED = Path(__file__).with_name("reference.safetensors")


@dataclass(frozen=True, kw_only=True)
class LoCoCo(Storage, Reading):
    """Slots that take in a text chunk by chunk; see the module."""

    slots: int = 128  # the authors' code; its runs have 128 to 512
    chunk_tokens: int = 512  # the authors' runs
    heavy: float = 0.5  # share of the slots that stay as they are; the authors' code
    local: float = 0.25  # share that holds the latest tokens, among these; code 0, which predicts worse
    file: str | None = None  # kernels, or uniform for untrained ones; default: the reference's, bundled

    def __post_init__(self) -> None:
        for name, least in (("slots", 2), ("chunk_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"got {name}={getattr(self, name)}; allowed is {least} or more")
        check_shares(self.heavy, self.local)

    def check(self, model: ModelInfo) -> None:
        """Raise ValueError where the kernels are missing or another model's."""
        if self.file == "uniform":
            return
        if self.file is None and not BUNDLED.is_file():
            raise ValueError(f"there are no kernels for {model.name}; {HOW}, and pass file=FILE")
        found = self._loaded
        check_made_for(
            model, "kernels", self.file, found.model, found.fingerprints, f"{HOW}, and pass file=FILE"
        )
        for layer in model.open_layers:
            made = found.layers.get(layer.index)
            if made is None or made.down.shape[:2] != (layer.num_kv_heads, 2 * layer.head_dim):
                raise ValueError(
                    f"{self.file} has no kernels that fit layer {layer.index} of {model.name}; {HOW}"
                )

    def keeps_itself(self) -> bool:
        return True

    def read(self, reader: Reader, ids: Iterable[Tensor], num_tokens: int | None) -> Any:
        return self._take_in(reader, reader.new_run(), ids)

    def extend(self, reader: Reader, run: Any, ids: Iterable[Tensor]) -> Any:
        return self._take_in(reader, reader.fork(run), ids)

    def observe(self, step: Step) -> None:
        """While a text is read, add up the attention that each token gets from the queries of a chunk."""
        if step.phase == "prefill":
            received = attention_received(step, step.queries, step.query_positions)
            received = received.view(len(received), len(step.store.heads), -1, step.store.num_tokens).sum(2)
            if "received" in step.state:
                received[:, :, : step.num_past] += step.state["received"]
            step.state["received"], step.state["rotated"] = received, step.rotated

    def _take_in(self, reader: Reader, run: Any, ids: Iterable[Tensor]) -> Any:
        for chunk in cut(ids, self.chunk_tokens):
            reader.prefill(run, [chunk])
            kept, blended = [], []
            for held in reader.held(run, self):
                places, pair = self._compress(held)
                kept.append(places)
                blended.append(pair)
            reader.keep(run, kept, blended, last=False)
        reader.keep(run, [None] * len(reader.held(run, self)))
        return run

    def _compress(self, held: Held) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Places to keep and what stands there from now on; nothing while there are slots enough."""
        store, rope = held.store, held.layer.rope
        received, turned = held.state.pop("received"), held.state.pop("rotated")
        if store.num_tokens <= self.slots:
            return None, None
        keys, positions = store.keys.float(), store.positions
        if not turned:
            keys = rotated(keys, positions, rope)
        kernels = None
        if self.file != "uniform":
            kernels = self._kernels(held.layer.index, keys.device)
        places, new_keys, new_values = compress(
            keys[0],
            store.values[0].float(),
            received[0],
            kernels,
            slots=self.slots,
            heavy=self.heavy,
            local=self.local,
        )
        if not turned:
            at = positions.expand(-1, len(places), -1).gather(2, places[None])
            new_keys = unrotated(new_keys[None], at, rope)[0]
        return places[None], (new_keys[None], new_values[None])

    @cached_property
    def _loaded(self) -> Kernels:
        return load_kernels(BUNDLED if self.file is None else self.file)

    @cached_property
    def _moved(self) -> dict[tuple[int, torch.device], LayerKernels]:
        return {}

    def _kernels(self, layer: int, device: torch.device) -> LayerKernels:
        if (layer, device) not in self._moved:
            self._moved[layer, device] = self._loaded.layers[layer].to(device)
        return self._moved[layer, device]


def cut(pieces: Iterable[Tensor], num_tokens: int) -> Iterator[Tensor]:
    """A stream of ids `[n]` in chunks of `num_tokens` and a rest, however it came."""
    held = torch.zeros(0, dtype=torch.long)
    for piece in pieces:
        held = torch.cat((held, piece.to(held.device)))
        while len(held) >= num_tokens:
            yield held[:num_tokens]
            held = held[num_tokens:]
    if len(held):
        yield held
