"""Contexts saved at a level of CacheGen's codec: smaller files, within half a bin, refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longspan.engine.api import load, open_context
from longspan.engine.context import Context
from longspan.errors import UserInputError
from longspan.storage.cachegen import LEVELS, head_std, third_of
from tests.models import random_ids, random_model, word_tokenizer, words

SPECS = ("dense", "snapkv(keep=0.5, window_tokens=8)", "snapkv(keep=0.5, window_tokens=8, spread=heads)")


def read(spec: str) -> Context:
    model = load(random_model(), spec, tokenizer=word_tokenizer())
    return model.read(words(random_ids(1600)), progress=False)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("level", [0, 2, 4])
def test_every_number_is_within_half_a_bin(spec: str, level: int, tmp_path: Path) -> None:
    context = read(spec)
    context.save(tmp_path / "book.span", level=level)
    back = open_context(tmp_path / "book.span", context.model)
    for index, (mine, theirs) in enumerate(zip(context.run.layers, back.run.layers, strict=True)):
        for slab, other in zip(mine.slabs, theirs.slabs, strict=True):
            assert torch.equal(slab.positions, other.positions)
            third = third_of(index, len(context.run.layers))
            for name, bins in (("keys", LEVELS[level].key_bins), ("values", LEVELS[level].value_bins)):
                exact, coded = getattr(slab, name), getattr(other, name)
                first = exact[:, :, :1500]
                half = bins[third] * head_std(first)[..., None, None] / 2
                assert ((coded[:, :, :1500] - first).abs() <= half * 1.001).all()
                assert not torch.equal(coded, exact)
    assert back.kept_tokens == context.kept_tokens
    assert back.ask("w10 w11", max_new_tokens=3).text


@pytest.mark.parametrize("settings", ["", ", tier=disk", ", spread=heads"])
def test_what_waits_in_a_lower_tier_is_coded_too(settings: str, tmp_path: Path) -> None:
    context = read(f"snapkv(keep=0.25, window_tokens=8, recall=true{settings})")
    for name, level in (("exact", None), ("coded", 0)):
        context.save(tmp_path / name, level=level)
    assert (tmp_path / "exact").stat().st_size > 4 * (tmp_path / "coded").stat().st_size
    back = open_context(tmp_path / "coded", context.model)
    assert back.run.archived_bytes == context.run.archived_bytes
    assert back.kept_tokens == context.kept_tokens and not back.whole
    cpu = torch.device("cpu")
    for index, (mine, theirs) in enumerate(zip(context.run.layers, back.run.layers, strict=True)):
        third = third_of(index, len(context.run.layers))
        bins = LEVELS[0].key_bins[third], LEVELS[0].value_bins[third]
        for slab, other in zip(mine.slabs, theirs.slabs, strict=True):
            assert slab.archive is not None and other.archive is not None
            exact, coded = slab.archive.load(cpu), other.archive.load(cpu)
            assert torch.equal(exact[2], coded[2]) and exact[2].shape[2] == 1600
            for size, a, b in zip(bins, exact, coded, strict=False):
                half = size * head_std(a[:, :, :1500])[..., None, None] / 2
                assert ((a[:, :, :1500] - b[:, :, :1500]).abs() <= half * 1.001).all()
                assert not torch.equal(a, b)
    question = random_ids(9, seed=5)
    logits = []
    for each in (context, back, read("snapkv(keep=0.25, window_tokens=8)")):
        reader = each.model.reader()
        logits.append(reader.advance(reader.open_question(each.run, question), question))
    exactly, coded_, without = logits
    # what it recalls is nearly what was there, which is far from what it would answer without
    assert (coded_ - exactly).abs().max() < 0.2 * (without - exactly).abs().max()


def test_coarser_levels_make_smaller_files(tmp_path: Path) -> None:
    context = read("dense")
    sizes = []
    for level in (None, 0, 2, 4):
        context.save(tmp_path / "book.span", level=level)
        sizes.append((tmp_path / "book.span").stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert sizes[0] > 4 * sizes[1]  # 32 bits a number against fewer than 8
    exact = (
        1600 * 2 * 2 * 2 * 16 * 4
    )  # keys and values of 2 layers of 2 kv heads of 16 channels, and nothing for positions
    assert sizes[0] < exact + 1600 * 8 + 20_000


def test_damage_is_refused(tmp_path: Path) -> None:
    context = read("dense")
    file = tmp_path / "book.span"
    context.save(file, level=2)
    data = bytearray(file.read_bytes())
    for place in range(len(data) // 2, len(data), len(data) // 37):
        changed = bytearray(data)
        changed[place] ^= 4
        file.write_bytes(changed)
        with pytest.raises(UserInputError, match="read the text again|damaged|save it again"):
            open_context(file, context.model)


@pytest.mark.parametrize("level", [-1, 5, True, 1.5, "2"])
def test_what_is_no_level_is_refused(level: object, tmp_path: Path) -> None:
    context = read("dense")
    with pytest.raises(UserInputError, match="allowed are None .exact. and 0 .finest. to 4"):
        context.save(tmp_path / "book.span", level=level)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
