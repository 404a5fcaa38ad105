"""Slabs that hold their first tokens in another form, and the engine's calls of a codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from longspan.engine import store
from longspan.engine.api import load
from longspan.engine.store import Slab, spare_tokens
from longspan.methods.cache.snapkv import SnapKV
from longspan.roles import Codec, Coded, Event, Held, LayerInfo, Together
from tests.models import random_ids, random_model

TOKENS = 12


def decoder(tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys are held halved, minus what is shared; in float64, to be brought to the slab's dtype."""
    return tokens["half"].double() * 2 + shared["more"].double()[:, :, None], tokens["values"].double()


def parts(keys: Tensor, values: Tensor, more: Tensor) -> Coded:
    return Coded(
        num_tokens=keys.shape[2],
        tokens={"half": (keys - more[:, :, None]) / 2, "values": values},
        shared={"more": more},
    )


def make(rows: int = 1, *, coded: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Slab, Tensor, Tensor]:
    """A slab of 2 heads, and the keys and values that it stands for: small whole numbers, exact in any form."""
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randint(-8, 8, (rows, 2, TOKENS, 4), generator=draw).to(dtype) for _ in range(2))
    slab = Slab((0, 1), decoder)
    slab.append(keys, values, torch.arange(TOKENS).expand(rows, -1), first=0)
    if coded:
        slab.code(parts(*(x[:, :, :coded] for x in slab.raw), torch.ones(rows, 2, 4)))
    return slab, keys, values


def holds(slab: Slab, keys: Tensor, values: Tensor) -> None:
    torch.testing.assert_close(slab.keys, keys, atol=0, rtol=0)
    torch.testing.assert_close(slab.values, values, atol=0, rtol=0)


def test_a_long_past_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    slab, keys, values = make(coded=11)
    asked = []

    def watched(tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        asked.append(tokens["half"].shape[2])
        return decoder(tokens, shared)

    slab.decoder = watched
    monkeypatch.setattr(store, "DECODED_TOKENS", 4)
    holds(slab, keys, values)
    assert asked == [4, 4, 3]
    slab.rest()
    assert slab.coded is not None
    groups = {"half": slab.coded.tokens["half"], "values": slab.coded.tokens["values"][:, :, :2]}
    slab.coded = Coded(
        num_tokens=11, tokens=groups, shared=slab.coded.shared
    )  # 2 groups do not part into 4 of 11
    slab.decoder = lambda tokens, shared: watched({**tokens, "values": values[:, :, :11]}, shared)
    holds(slab, keys, values)
    assert asked[3:] == [11]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coded", [1, 5, TOKENS])
def test_coded_tokens_are_freed_and_read_as_before(coded: int, dtype: torch.dtype) -> None:
    slab, keys, values = make(coded=coded, dtype=dtype)
    holds(slab, keys, values)
    assert (slab.coded_tokens, slab.raw_tokens, slab.num_tokens) == (coded, TOKENS - coded, TOKENS)
    raw_keys, raw_values, positions, *_ = slab.tensors
    room = TOKENS - coded + spare_tokens(TOKENS - coded)
    assert raw_keys.shape == raw_values.shape == (1, 2, room, 4)
    assert positions.shape == (1, 1, TOKENS + spare_tokens(TOKENS - coded))
    assert slab.capacity == coded + room


def test_later_tokens_are_coded_behind_earlier_ones() -> None:
    slab, keys, values = make(coded=5)
    slab.code(parts(*(x[:, :, :4] for x in slab.raw), torch.ones(1, 2, 4)))
    assert slab.coded_tokens == 9
    holds(slab, keys, values)
    new = torch.full((1, 2, 40, 4), 3.0)
    slab.append(new, new + 1, torch.arange(TOKENS, TOKENS + 40)[None], first=TOKENS)
    holds(slab, torch.cat((keys, new), 2), torch.cat((values, new + 1), 2))
    assert slab.positions[0, 0].tolist() == list(range(TOKENS + 40))
    assert (slab.contiguous_from, slab.end) == (0, TOKENS + 40)


def test_what_was_made_is_forgotten() -> None:
    slab, *_ = make(coded=5)
    first = slab.keys
    assert slab.keys.data_ptr() == first.data_ptr()
    slab.rest()
    assert slab.keys.data_ptr() != first.data_ptr()
    assert all(x.data_ptr() != first.data_ptr() for x in slab.tensors)


@pytest.mark.parametrize("coded", [0, 5, TOKENS])
def test_a_fork_that_codes_and_grows_leaves_its_parent_alone(coded: int) -> None:
    slab, keys, values = make(coded=coded)
    before = [x.clone() for x in slab.tensors]
    child, other = slab.fork(), slab.fork()
    new = torch.full((1, 2, 3, 4), 7.0)
    for branch in (child, other):
        branch.append(new, new, torch.arange(TOKENS, TOKENS + 3)[None], first=TOKENS)
    child.code(parts(*(x[:, :, :2] for x in child.raw), torch.ones(1, 2, 4)))
    holds(child, torch.cat((keys, new), 2), torch.cat((values, new), 2))
    holds(other, torch.cat((keys, new), 2), torch.cat((values, new), 2))
    child.give_back(slab)
    holds(slab, keys, values)
    slab.append(new + 1, new, torch.arange(TOKENS, TOKENS + 3)[None], first=TOKENS)
    holds(slab, torch.cat((keys, new + 1), 2), torch.cat((values, new), 2))
    holds(child, torch.cat((keys, new), 2), torch.cat((values, new), 2))
    for x, was in zip(before, slab.fork().tensors, strict=False):
        assert torch.equal(x[:, :, : TOKENS - coded], was[:, :, : TOKENS - coded])


@pytest.mark.parametrize("gone", [1, 7, 8, 11])
def test_crop_reaches_into_what_is_coded(gone: int) -> None:
    slab, keys, values = make(coded=5)
    child = slab.fork()
    child.crop(gone)
    left = TOKENS - gone
    holds(child, keys[:, :, :left], values[:, :, :left])
    assert child.coded_tokens == (5 if gone <= 7 else 0)
    if gone > 7:  # then it is a slab of its own
        child.append(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4), torch.tensor([[50, 51]]), first=None)
        assert child.positions[0, 0].tolist() == [*range(left), 50, 51]
        assert slab.positions[0, 0].tolist() == list(range(TOKENS))
    holds(slab, keys, values)


def test_keep_takes_coded_places_and_others() -> None:
    slab, keys, values = make(coded=5)
    index = torch.tensor([[[0, 4, 6, 11], [2, 3, 5, -1]]])
    slab.keep(index)
    assert slab.coded_tokens == 0 and slab.num_tokens == 4 and not slab.filled
    assert slab.positions.tolist() == index.tolist()
    for head, places in enumerate(index[0].clamp(min=0).tolist()):
        assert torch.equal(slab.keys[0, head], keys[0, head, places])
        assert torch.equal(slab.values[0, head], values[0, head, places])


def test_rows_take_their_codes_with_them() -> None:
    slab, keys, values = make(3, coded=5)
    rows = torch.tensor([2, 0, 2, 1])
    slab.select_rows(rows)
    holds(slab, keys[rows], values[rows])


@pytest.mark.parametrize("coded", [0, 5, TOKENS])
def test_unpack_inverts_pack(coded: int) -> None:
    slab, keys, values = make(2, coded=coded)
    facts, tensors = slab.pack()
    assert sum(x.numel() for name, x in tensors.items() if name.endswith("values")) == values.numel()
    back = Slab.unpack(facts, tensors, decoder)
    holds(back, keys, values)
    assert (back.coded_tokens, back.contiguous_from, back.filled) == (coded, 0, True)


@dataclass(frozen=True, kw_only=True)
class Halves(Codec):
    """Codes all but the last 4 tokens; writes down when it is asked, and for how many slabs."""

    over: Literal["slab", "layer", "model"] = "slab"
    asked: ClassVar[list[tuple[str, int]]] = []

    def together(self) -> Together:
        return self.over

    def code(self, held: Sequence[Held], *, event: Event) -> list[Coded | None]:
        self.asked.append((event, len(held)))
        made: list[Coded | None] = []
        for h in held:
            n = h.store.num_tokens - 4
            keys, values = h.store.keys[:, :, :n], h.store.values[:, :, :n]
            more = torch.zeros(len(keys), keys.shape[1], keys.shape[3])
            made.append(parts(keys, values, more) if n > 0 else None)
        return made

    def decode(
        self, layer: LayerInfo, tokens: Mapping[str, Tensor], shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return decoder(tokens, shared)


@pytest.mark.parametrize("over", ["slab", "layer", "model"])
@pytest.mark.parametrize(
    "storage", [None, SnapKV(keep=40), SnapKV(keep=40, spread="heads"), SnapKV(keep=40, spread="all")]
)
def test_a_codec_is_asked_once_behind_storage(over: Any, storage: SnapKV | None) -> None:
    """3 chunks and a rest of a text, the question, and one more token; 2 layers, of one slab or of one for each kv head."""
    Halves.asked.clear()
    codec = Halves(over=over)
    model = load(random_model(), [codec] if storage is None else [storage, codec], chunk_tokens=32)
    alone = load(random_model(), [] if storage is None else [storage], chunk_tokens=32)
    ids, question = random_ids(100), random_ids(9, seed=1)
    runs = [m.reader().prefill(m.reader().new_run(), [ids]) for m in (model, alone)]
    slabs = 1 if storage is None or storage.spread == "uniform" else 2
    assert all(slab.raw_tokens == 4 for layer in runs[0].layers for slab in layer.slabs)
    chunks = [] if storage is not None or over == "model" else [("chunk", slabs)] * 6
    read = [("read", 2 * slabs)] if over == "model" else [("read", slabs)] * 2
    assert Halves.asked == chunks + read
    asked = [m.reader().advance(run, question) for m, run in zip((model, alone), runs, strict=True)]
    assert Halves.asked[len(chunks + read) :] == [("token", slabs)] * 2
    asked += [m.reader().advance(run, question[:1]) for m, run in zip((model, alone), runs, strict=True)]
    torch.testing.assert_close(asked[0], asked[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(asked[2], asked[3], atol=1e-5, rtol=1e-5)
