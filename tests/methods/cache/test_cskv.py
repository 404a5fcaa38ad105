"""CSKV: latents against projections written out here, the window, quantised latents, factors on disk, training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from longspan.card import read_card
from longspan.engine.api import applied, load, open_context
from longspan.engine.context import Context
from longspan.engine.store import spare_tokens
from longspan.errors import SpecError
from longspan.methods._making import spread_rows
from longspan.methods.cache import cskv as module
from longspan.methods.cache.cskv import BUNDLED, Factors, load_factors, save_factors
from longspan.methods.cache.cskv.__main__ import main
from longspan.methods.cache.cskv.train import (
    Training,
    collect,
    make_factors,
    make_latents,
    reconstruction_error,
    singular_factors,
    train_layer,
)
from longspan.ops.quantised_decode import dequantise, quantise
from longspan.spec import resolve
from tests.models import full_logits, random_ids, random_model, word_tokenizer, words

HEAD_DIM, CHANNELS, WINDOW = 16, 32, 20
FINGERPRINT = load(random_model(), "dense").info.fingerprint


@pytest.fixture(scope="module")
def factors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random factors, not orthonormal, of the small model's two layers: up to 12 of 32 channels."""
    make = torch.Generator().manual_seed(0)
    tensors = {
        f"{layer}.{kind}.{part}": torch.randn(
            (CHANNELS, 12) if part == "down" else (12, CHANNELS), generator=make
        ).half()
        for layer in (0, 1)
        for kind in ("keys", "values")
        for part in ("down", "up")
    }
    path = tmp_path_factory.mktemp("factors") / "small.safetensors"
    save_factors(path, Factors(model="small", fingerprints=(FINGERPRINT,), tensors=tensors))
    return path


def spec(factors: Path | str, rank: float = 0.25, more: str = "") -> str:
    return f"cskv(rank={rank}, window_tokens={WINDOW}, factors='{factors}'{more})"


def read(spec: str, num_tokens: int = 150) -> Context:
    return load(random_model(), spec, tokenizer=word_tokenizer()).read(random_ids(num_tokens), progress=False)


def plain_layers(num_tokens: int = 150) -> list[tuple[Tensor, Tensor]]:
    """Keys before rotation and values `[1, K, S, D]` of each layer."""
    return [
        (layer.slabs[0].keys, layer.slabs[0].values)
        for layer in read("cskv(rank=1.0)", num_tokens).run.layers
    ]


def flat(x: Tensor) -> Tensor:
    """`[1, K, S, D]` as `[S, K * D]`, token by token and head by head."""
    return torch.stack([torch.cat([x[0, k, s] for k in range(x.shape[1])]) for s in range(x.shape[2])])


@pytest.mark.parametrize("rank", [0.25, 0.375])
@pytest.mark.parametrize("num_tokens", [21, 150])
def test_old_tokens_are_projected_and_the_window_is_whole(
    factors: Path, rank: float, num_tokens: int
) -> None:
    context, held = read(spec(factors, rank), num_tokens), load_factors(factors).tensors
    r = round(rank * CHANNELS)
    for index, (layer, plain) in enumerate(zip(context.run.layers, plain_layers(num_tokens), strict=True)):
        slab = layer.slabs[0]
        assert (slab.coded_tokens, slab.raw_tokens) == (num_tokens - WINDOW, WINDOW)
        for name, made, x in (("keys", slab.keys, plain[0]), ("values", slab.values, plain[1])):
            down, up = (held[f"{index}.{name}.{part}"].float() for part in ("down", "up"))
            old = flat(x)[:-WINDOW] @ down[:, :r] @ up[:r]
            torch.testing.assert_close(flat(made)[:-WINDOW], old, atol=1e-4, rtol=1e-4)
            assert torch.equal(made[:, :, -WINDOW:], x[:, :, -WINDOW:])


def test_keys_and_values_may_have_ranks_of_their_own(factors: Path) -> None:
    slab = read(spec(factors, 0.125, ", value_rank=0.375")).run.layers[0].slabs[0]
    assert slab.coded is not None
    assert {name: x.shape for name, x in slab.coded.tokens.items()} == {
        "keys": (1, 1, 130, 4),
        "values": (1, 1, 130, 12),
    }


def test_bytes_are_those_counted_by_hand(factors: Path) -> None:
    context, room = read(spec(factors)), spare_tokens(WINDOW)
    latents, window = 130 * 2 * 8, (WINDOW + room) * 2 * CHANNELS
    assert context.kv_bytes == 2 * (4 * (latents + window) + 8 * (150 + room))
    assert context.kv_bytes < 0.6 * read("dense").kv_bytes
    own = read(spec("text"))  # holds its 8 singular vectors of 32 channels besides
    assert own.kv_bytes - context.kv_bytes == 2 * 4 * 2 * 8 * CHANNELS
    quantised = read(spec(factors, 0.375, ", bits=4"))  # 4 groups of 32 tokens, 12 channels of half a byte
    codes, scales = 2 * 128 * 12 // 2, 4 * 12 * 2 * 2 + 128 * 2
    raw = 22 + spare_tokens(22)
    assert quantised.kv_bytes == 2 * (codes + scales + 4 * raw * 2 * CHANNELS + 8 * (128 + raw))


@pytest.mark.parametrize("bits", [8, 4])
def test_latents_are_quantised_in_whole_groups(factors: Path, bits: int) -> None:
    context, held = read(spec(factors, 0.375, f", bits={bits}")), load_factors(factors).tensors
    for index, (layer, plain) in enumerate(zip(context.run.layers, plain_layers(), strict=True)):
        slab = layer.slabs[0]
        assert (slab.coded_tokens, slab.raw_tokens) == (128, 22)  # the window, and what fills no group
        latents = [
            flat(x)[:128] @ held[f"{index}.{name}.down"].float()
            for name, x in zip(("keys", "values"), plain, strict=True)
        ]
        store = quantise(
            latents[0][None, None], latents[1][None, None], key_bits=bits, value_bits=bits, group_tokens=32
        )
        for name, made, latent in zip(
            ("keys", "values"), (slab.keys, slab.values), dequantise(store), strict=True
        ):
            wanted = latent[0, 0] @ held[f"{index}.{name}.up"].float()
            torch.testing.assert_close(flat(made)[:128], wanted, atol=1e-3, rtol=1e-3)


def test_singular_vectors_of_the_text_are_the_best_factors() -> None:
    context = read(spec("text"))
    for layer, plain in zip(context.run.layers, plain_layers(), strict=True):
        for made, x in zip((layer.slabs[0].keys, layer.slabs[0].values), plain, strict=True):
            vh = torch.linalg.svd(flat(x), full_matrices=False).Vh[:8]
            wanted = flat(x)[:-WINDOW] @ vh.T @ vh
            torch.testing.assert_close(flat(made)[:-WINDOW], wanted, atol=1e-3, rtol=1e-3)
            cut = torch.where(torch.arange(CHANNELS) < 8, flat(x)[:-WINDOW], 0.0)  # a fake: channels dropped
            off = (wanted - flat(x)[:-WINDOW]).norm()
            assert off < 0.8 * (cut - flat(x)[:-WINDOW]).norm()


@pytest.mark.parametrize("source", ["text", "file"])
@pytest.mark.parametrize("bits", [16, 4])
def test_the_window_moves_on_while_an_answer_grows(factors: Path, source: str, bits: int) -> None:
    model = load(random_model(), spec("text" if source == "text" else factors, 0.375, f", bits={bits}"))
    branch = model.read(random_ids(150), progress=False).run.fork()
    slab = branch.layers[1].slabs[0]
    known, first = slab.coded_tokens, slab.keys[:, :, :100].clone()
    for count, token in enumerate(random_ids(70, seed=3), start=1):
        model.reader().advance(branch, token[None])
        assert slab.num_tokens == 150 + count and WINDOW <= slab.raw_tokens < WINDOW + 32
        assert (slab.coded_tokens - known) % 32 == 0
    assert slab.coded_tokens > known + 32
    torch.testing.assert_close(slab.keys[:, :, :100], first, atol=1e-5, rtol=1e-5)


def test_a_text_read_later_shrinks_by_the_same_singular_vectors(tmp_path: Path) -> None:
    context = read(spec("text"))
    more = random_ids(60, seed=8)
    context.save(tmp_path / "book.span")
    back = open_context(tmp_path / "book.span", context.model)
    for one in (context, back):
        longer = one.read(more)
        slab = longer.run.layers[0].slabs[0]
        assert (slab.coded_tokens, slab.raw_tokens) == (190, WINDOW)
        assert slab.coded is not None
        old = context.run.layers[0].slabs[0].coded
        assert old is not None and torch.equal(slab.coded.shared["keys"], old.shared["keys"])


def test_a_text_of_fewer_tokens_than_directions_waits() -> None:
    context = read("cskv(rank=0.5, window_tokens=4, factors=text)", 15)
    assert context.run.layers[0].slabs[0].coded is None
    slab = context.read(random_ids(10)).run.layers[0].slabs[0]
    assert slab.coded is not None and slab.coded_tokens == 21
    assert slab.coded.shared["keys"].shape == (1, 16, 32)


def test_reading_is_in_full_precision(factors: Path) -> None:
    ids = random_ids(150)
    dense = full_logits(load(random_model(), "dense"), ids)
    torch.testing.assert_close(
        full_logits(load(random_model(), spec(factors)), ids), dense, atol=1e-4, rtol=1e-4
    )


def test_generate_and_ask_work(factors: Path) -> None:
    ids, model = random_ids(150), random_model()
    with applied(model, spec(factors)):
        out = model.generate(ids[None], max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 190)
    span = load(random_model(), spec(factors), tokenizer=word_tokenizer())
    assert span.read(words(ids), progress=False).ask("w10 w11", max_new_tokens=4).text


def test_heads_stored_apart_are_refused_in_one_sentence(factors: Path) -> None:
    apart = "duo_attention(retrieval_heads=[1, 2], sink_tokens=4, recent_tokens=100)"
    with pytest.raises(ValueError, match=r"take the 2 kv heads of a layer together.*use factors=text"):
        read(f"{apart} + {spec(factors)}")
    assert read(f"{apart} + {spec('text')}").kept_tokens < 150


# factors


def test_factors_come_back_as_they_were_saved(factors: Path, tmp_path: Path) -> None:
    found = load_factors(factors)
    assert (found.model, found.fingerprints, found.shape(1, "values")) == ("small", (FINGERPRINT,), (32, 12))
    assert found.shape(2, "keys") == (0, 0)
    save_factors(tmp_path / "again.safetensors", found)
    again = load_factors(tmp_path / "again.safetensors")
    assert all(torch.equal(x, again.tensors[name]) for name, x in found.tensors.items())


def test_factors_that_do_not_fit_are_refused_in_one_sentence(factors: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there are no factors for .*: .*small\.safetensors holds those of small"
    ):
        load(random_model(seed=3), spec(factors))
    with pytest.raises(
        ValueError, match=r"the bundled file holds those of reference.*make them with `python -m"
    ):
        load(random_model(), "cskv")
    with pytest.raises(ValueError, match=r"a rank of 0\.5 for keys; the factors serve up to 0\.375"):
        load(random_model(), spec(factors, 0.5))
    with pytest.raises(ValueError, match=r"there is no file .*missing\.safetensors"):
        load(random_model(), spec(tmp_path / "missing.safetensors"))
    (tmp_path / "text.safetensors").write_text("no factors")
    with pytest.raises(ValueError, match=r"text\.safetensors is no safetensors file"):
        load(random_model(), spec(tmp_path / "text.safetensors"))
    found = load_factors(factors)
    one = {name: x for name, x in found.tensors.items() if name.startswith("0.")}
    save_factors(
        tmp_path / "one.safetensors", Factors(model="small", fingerprints=(FINGERPRINT,), tensors=one)
    )
    with pytest.raises(ValueError, match=r"has no factors that fit layer 1"):
        load(random_model(), spec(tmp_path / "one.safetensors"))


def test_the_bundled_factors_are_small_and_of_the_reference_model() -> None:
    found = load_factors(BUNDLED)
    assert BUNDLED.stat().st_size < 1_000_000
    assert found.model == "reference" and len(found.fingerprints) == 3
    assert {found.shape(layer, "keys") for layer in range(8)} == {(128, 64)}
    assert {found.shape(layer, "values") for layer in range(8)} == {(128, 96)}
    assert all(x.dtype == torch.float16 for x in found.tensors.values())


# making them


def test_collect_finds_keys_before_rotation() -> None:
    model, rows = load(random_model(), "cskv(rank=1.0)"), random_ids(80).view(2, 40)
    found = collect(model, rows)
    attention = random_model().model.layers[0].self_attn
    norm = random_model().model.layers[0].input_layernorm
    with torch.no_grad():
        hidden = norm(random_model().model.embed_tokens(rows))
        torch.testing.assert_close(found[0][0], attention.k_proj(hidden).flatten(0, 1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[0][1], attention.v_proj(hidden).flatten(0, 1), atol=1e-5, rtol=1e-5)


def sample(num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[N, 32]` that lean to some directions, the same for all seeds."""
    mix = (
        torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(9))
        * torch.logspace(0, -1.5, 32)[:, None]
    )
    make = torch.Generator().manual_seed(seed)
    found = torch.randn(2, num_tokens, 32, generator=make) @ mix
    return found[0], found[1]


def both(pair: tuple[Tensor, Tensor], rank: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return singular_factors(pair[0], rank), singular_factors(pair[1], rank)


def test_training_lowers_the_error_on_other_text() -> None:
    """From the singular vectors of too short a text, at every rank that is trained."""
    long, other = sample(4096, 1), sample(2048, 2)
    start = both((long[0][:16], long[1][:16]), 8)
    trained = train_layer(long, start, Training(steps=300, learning_rate=1e-2, bits=16))
    for rank in (8, 4):
        before, after = (sum(reconstruction_error(other, made, rank, 16)) for made in (start, trained))
        assert after < 0.9 * before


@pytest.mark.parametrize("bits", [16, 4])
def test_singular_vectors_of_all_text_leave_training_nothing_to_gain(bits: int) -> None:
    long, other = sample(4096, 1), sample(2048, 2)
    start = both(long, 8)
    trained = train_layer(long, start, Training(steps=100, learning_rate=1e-3, bits=bits))
    before, after = (sum(reconstruction_error(other, made, 8, bits)) for made in (start, trained))
    assert 0.97 * before < after < 1.02 * before


def test_latents_are_rounded_as_they_are_held() -> None:
    keys, values = sample(64, 3)
    down, up = singular_factors(keys, 8)
    exact, rounded = (make_latents(keys, values, down, down, bits) for bits in (16, 4))
    assert torch.equal(exact[0], keys @ down)
    assert 0 < float((rounded[0] - exact[0]).norm() / exact[0].norm()) < 0.1


def test_no_steps_are_the_singular_vectors() -> None:
    made = make_factors({3: sample(500, 1)}, (8, 12), Training())
    assert {name: tuple(x.shape) for name, x in made.items()} == {
        "3.keys.down": (32, 8),
        "3.keys.up": (8, 32),
        "3.values.down": (32, 12),
        "3.values.up": (12, 32),
    }
    keys = sample(500, 1)[0]
    u, s, vh = torch.linalg.svd(keys, full_matrices=False)
    wanted = u[:, :8] * s[:8] @ vh[:8]
    got = keys @ made["3.keys.down"].float() @ made["3.keys.up"].float()
    torch.testing.assert_close(got, wanted, atol=1e-2, rtol=1e-2)


def test_rows_are_spread_over_the_text() -> None:
    rows = spread_rows(torch.arange(1000), 100, 4)
    assert rows[:, 0].tolist() == [0, 300, 600, 900] and rows.shape == (4, 100)
    assert len(spread_rows(torch.arange(250), 100, 4)) == 2


def test_the_command_makes_a_file_that_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "model", tmp_path / "small.safetensors"
    random_model().save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    (tmp_path / "text.txt").write_text(words(random_ids(500)))
    given = [str(model), str(tmp_path / "text.txt"), str(out), "--rank", "0.5", "--row-tokens", "100"]
    assert main([*given, "--steps", "4", "--bits", "4"]) == 0
    found = load_factors(out)
    assert found.shape(0, "keys") == (32, 16) and found.settings["tokens"] == 500
    context = load(str(model), f"cskv(rank=0.5, window_tokens=16, factors='{out}')").read(random_ids(150))
    assert context.run.layers[0].slabs[0].coded_tokens == 134
    assert main([*given[:2], str(out), "--rank", "2"]) == 2
    assert "got shares 2 and 2 of the channels" in capsys.readouterr().err
    assert main([str(model), str(tmp_path / "none.txt"), str(out)]) == 2
    assert "there is no text at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("rank=0", "got rank=0; allowed is a share of the channels above 0"),
        ("value_rank=1.5", "got value_rank=1.5; allowed is a share"),
        ("window_tokens=-1", "got window_tokens=-1; allowed is 0 or more"),
        ("bits=3", "bits takes"),
        ("rank=0.25, value_rank=0.5, bits=4", "keys and values are quantised together"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"cskv({settings})")


def test_the_card_reads() -> None:
    card = read_card(module.__file__)
    assert (card.name, card.roles, card.training, card.paper_id) == ("cskv", ("Codec",), "calibration", 70)
    assert [p.name for p in card.parameters] == ["rank", "value_rank", "window_tokens", "bits", "factors"]
    assert all(parameter.comment for parameter in card.parameters)
