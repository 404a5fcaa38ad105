"""Cartridges: what stands in a run is what the file holds, for the very text it was made of, under the very model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longspan.engine.api import load, open_context
from longspan.engine.model import SpanModel
from longspan.engine.prompt import encode
from longspan.engine.store import spare_tokens
from longspan.methods.cache.cartridges import Cartridge, hash_ids, load_cartridge, save_cartridge
from tests.models import random_ids, random_model, word_tokenizer, words

TEXT, OTHER = words(random_ids(100)), words(random_ids(70, seed=1))
P = 12


def span(family: str = "Llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> SpanModel:
    return load(random_model(family, seed=seed, dtype=dtype), tokenizer=word_tokenizer())


def random_cartridge(model: SpanModel, text: str, num_tokens: int = P, seed: int = 0) -> Cartridge:
    """One with random slots, so that nothing but its file can give its answers."""
    source = torch.Generator().manual_seed(seed)
    ids = encode(model.tokenizer, text)
    whole = model.read(text, progress=False).run.ids

    def slots() -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(layer.num_kv_heads, num_tokens, layer.head_dim, generator=source)
            for layer in model.info.layers
        )

    return Cartridge(
        keys=slots(),
        values=slots(),
        model=model.name,
        fingerprint=model.info.fingerprint,
        document_hash=hash_ids(ids),
        document_tokens=len(ids),
        head_tokens=len(whole) - len(ids),
        settings={"steps": 1},
    )


def saved(model: SpanModel, folder: Path, text: str = TEXT, name: str = "a", **settings: int) -> Path:
    path = folder / f"{name}.cartridge.safetensors"
    save_cartridge(path, random_cartridge(model, text, **settings))
    return path


def next_logits(model: SpanModel, text: str, question: Tensor) -> Tensor:
    run = model.read(text, progress=False).run.fork()
    logits = model.reader().advance(run, question)
    assert logits is not None
    return logits[0]


@pytest.mark.parametrize("family", ["Llama", "Phi3"])
def test_slots_stand_rotated_at_their_positions(family: str, tmp_path: Path) -> None:
    """Each pair of channels turned by its angle, written out."""
    model = span(family)
    path = saved(model, tmp_path)
    made, context = load_cartridge(path), model.with_methods(f'cartridges(file="{path}")').read(TEXT)
    for layer, store in zip(model.info.layers, context.run.layers, strict=True):
        (slab,) = store.slabs
        assert slab.positions.tolist() == [[list(range(P))]]
        torch.testing.assert_close(slab.values[0], made.values[layer.index])
        assert layer.rope is not None
        half = layer.rope.rotary_dims // 2
        for head in range(layer.num_kv_heads):
            for slot in (0, 1, P - 1):
                key, wanted = made.keys[layer.index][head, slot].tolist(), [0.0] * layer.head_dim
                for i in range(layer.head_dim):
                    if i >= 2 * half:
                        wanted[i] = key[i]
                        continue
                    angle = slot * float(layer.rope.inv_freq[i % half])
                    partner = -key[i + half] if i < half else key[i - half]
                    wanted[i] = (key[i] * math.cos(angle) + partner * math.sin(angle)) * layer.rope.scaling
                torch.testing.assert_close(
                    slab.keys[0, head, slot], torch.tensor(wanted), atol=1e-4, rtol=1e-4
                )


def test_the_question_follows_the_slots_and_bytes_are_theirs(tmp_path: Path) -> None:
    model = span()
    path = saved(model, tmp_path)
    context = model.with_methods(f'cartridges(file="{path}")').read(TEXT, progress=False)
    assert context.run.seen == context.num_tokens == context.kept_tokens == P
    slots, info = P + spare_tokens(P), model.info.layers[0]
    each = 2 * info.num_kv_heads * info.head_dim * 4 + 8  # and an int64 position
    assert context.kv_bytes == len(model.info.layers) * slots * each
    assert context.kv_bytes < model.read(TEXT, progress=False).kv_bytes / 3
    answer = context.ask("w10 w11", max_new_tokens=4)
    assert answer.usage.kv_bytes == context.kv_bytes and answer.sources == ()


def test_two_cartridges_stand_behind_one_another_in_their_order(tmp_path: Path) -> None:
    model = span()
    a, b = saved(model, tmp_path), saved(model, tmp_path, OTHER, "b", num_tokens=7, seed=1)
    alone = [load_cartridge(path) for path in (a, b)]
    both = model.with_methods(f'cartridges(files=["{a}", "{b}"])')
    context = both.read(f"{TEXT} w3 w4 {OTHER}", progress=False)
    (slab,) = context.run.layers[1].slabs
    assert slab.positions.tolist() == [[list(range(P + 7))]]
    torch.testing.assert_close(slab.values[0], torch.cat([found.values[1] for found in alone], dim=1))
    turned = model.with_methods(f'cartridges(files=["{b}", "{a}"])')
    with pytest.raises(ValueError, match=r"is not from token 0 on the document of 70 tokens that .*b\.cart"):
        turned.read(f"{TEXT} {OTHER}", progress=False)
    question = random_ids(6, seed=8)
    one, other = (
        next_logits(m, text, question) for m, text in ((both, f"{TEXT} {OTHER}"), (turned, f"{OTHER} {TEXT}"))
    )
    assert (one - other).abs().max() > 1e-3


def test_a_cartridge_stands_for_its_very_text(tmp_path: Path) -> None:
    model = span()
    spec = f'cartridges(file="{saved(model, tmp_path)}")'
    reading = model.with_methods(spec)
    pieces = (TEXT[i : i + 23] for i in range(0, len(TEXT), 23))
    assert reading.read(pieces, progress=False).num_tokens == P
    with pytest.raises(ValueError, match=r"the text is not the document of 100 tokens that .* was made of"):
        reading.read(TEXT.replace("w", "w1", 1), progress=False)
    with pytest.raises(ValueError, match="the text goes on for 2 tokens behind what the cartridges"):
        reading.read(f"{TEXT} w5 w6", progress=False)
    longer = reading.read(TEXT, progress=False).read("w5 w6")
    assert longer.num_tokens == P + 2


def test_an_untrained_cartridge_is_the_first_tokens_and_nothing_else() -> None:
    model, question = span(), random_ids(6, seed=8)
    untrained = model.with_methods("cartridges(tokens=20)")
    first = " ".join(TEXT.split()[:20])
    assert torch.equal(next_logits(untrained, TEXT, question), next_logits(model, first, question))


def test_asking_leaves_a_cartridge_as_it_is(tmp_path: Path) -> None:
    model = span()
    reading = model.with_methods(f'cartridges(file="{saved(model, tmp_path)}")')
    context = reading.read(TEXT, progress=False)
    held = context.kv_bytes
    first = context.ask("w10 w11", max_new_tokens=6)
    context.ask("w400 w7", max_new_tokens=9)
    assert context.ask("w10 w11", max_new_tokens=6).token_ids == first.token_ids
    assert context.kv_bytes == held
    assert reading.read(TEXT, progress=False).ask("w10 w11", max_new_tokens=6).token_ids == first.token_ids


def test_save_and_load_keep_a_cartridge(tmp_path: Path) -> None:
    model = span()
    reading = model.with_methods(f'cartridges(file="{saved(model, tmp_path)}")')
    context = reading.read(TEXT, progress=False)
    context.save(tmp_path / "doc.span")
    back = open_context(tmp_path / "doc.span", reading)
    assert back.ask("w10 w11", max_new_tokens=5).text == context.ask("w10 w11", max_new_tokens=5).text
    assert back.kv_bytes == context.kv_bytes


@pytest.mark.parametrize(
    ("beside", "tolerance"),
    [("self_extend(window_tokens=128)", 1e-4), ("kivi(bits=8, residual_tokens=0)", 0.2)],
)
def test_keys_come_as_the_other_methods_of_a_spec_hold_them(
    beside: str, tolerance: float, tmp_path: Path
) -> None:
    """Keys before rotation, or coded: within the trained window the answers are those of the cartridge alone."""
    model, question = span(), random_ids(5, seed=8)
    alone = f'cartridges(file="{saved(model, tmp_path, num_tokens=64)}")'
    mine = next_logits(model.with_methods(alone), TEXT, question)
    both = model.with_methods(f"{alone} + {beside}")
    assert (mine - next_logits(both, TEXT, question)).abs().max() < tolerance * mine.std()
    if "kivi" in beside:
        plain, coded = (m.read(TEXT, progress=False).kv_bytes for m in (model.with_methods(alone), both))
        assert coded < 0.6 * plain


def test_a_method_that_drops_what_it_saw_read_is_refused(tmp_path: Path) -> None:
    model = span().with_methods(f'cartridges(file="{saved(span(), tmp_path)}") + snapkv(keep=0.5)')
    with pytest.raises(ValueError, match=r"snapkv chooses among tokens that it saw being read"):
        model.read(TEXT, progress=False)


def test_files_that_cannot_serve_are_refused_in_one_sentence(tmp_path: Path) -> None:
    model = span()
    path = saved(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"there is no file nowhere\.safetensors; make one with `longspan train"
    ):
        model.with_methods("cartridges(file=nowhere.safetensors)")
    with pytest.raises(ValueError, match="is a cartridge of .* is another model or in another number format"):
        span(seed=1).with_methods(f'cartridges(file="{path}")')
    tensors = load_file(path)
    tensors["values.1"][0, 3, 2] += 1
    metadata = {"longspan_cartridge": json.dumps(_header(path))}
    save_file(tensors, tmp_path / "altered.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="was altered since it was written"):
        model.with_methods(f'cartridges(file="{tmp_path / "altered.safetensors"}")')
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="holds no cartridge of this version"):
        load_cartridge(tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is no cartridge, or is cut short"):
        load_cartridge(tmp_path / "cut.safetensors")
    (tmp_path / "less.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is no cartridge, or is cut short"):
        load_cartridge(tmp_path / "less.safetensors")
    whole = load_cartridge(path)
    save_cartridge(path, replace(whole, keys=whole.keys[:1], values=whole.values[:1]))
    with pytest.raises(ValueError, match="does not fit the layers of"):
        model.with_methods(f'cartridges(file="{path}")')


def _header(path: Path) -> dict[str, object]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        found: dict[str, object] = json.loads(file.metadata()["longspan_cartridge"])
    return found


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    model = span()
    made = random_cartridge(model, TEXT)
    save_cartridge(tmp_path / "a.safetensors", made)
    found = load_cartridge(tmp_path / "a.safetensors")
    for a, b in zip((*made.keys, *made.values), (*found.keys, *found.values), strict=True):
        assert torch.equal(a, b)
    assert replace(found, keys=(), values=()).__dict__ == replace(made, keys=(), values=()).__dict__
    with pytest.raises(ValueError, match="there is no folder"):
        save_cartridge(tmp_path / "nowhere" / "a.safetensors", made)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cartridges()", "got 0 of file, files and tokens; give one"),
        ("cartridges(file=a, tokens=8)", "got 2 of file, files and tokens; give one"),
        ("cartridges(tokens=0)", "got tokens=0; allowed is 1 or more"),
    ],
)
def test_wrong_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        span().with_methods(spec)
