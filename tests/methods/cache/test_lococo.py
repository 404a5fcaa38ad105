"""LoCoCo: what stands in the slots against plain loops, chunk by chunk; kernels on disk; training; the command."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longspan.card import read_card
from longspan.engine.api import applied, load, open_context
from longspan.engine.context import Context
from longspan.engine.prompt import encode
from longspan.engine.store import spare_tokens
from longspan.errors import SpecError, UserInputError
from longspan.methods._making import spread_rows
from longspan.methods.cache import lococo as module
from longspan.methods.cache.lococo import BUNDLED, Kernels, LoCoCo, cut, load_kernels, save_kernels
from longspan.methods.cache.lococo.__main__ import main
from longspan.methods.cache.lococo.mixing import NAMES, LayerKernels, compress, start_kernels
from longspan.methods.cache.lococo.train import Training, attended, errors, train_kernels
from longspan.roles import Step
from longspan.spec import resolve
from tests.models import random_ids, random_model, word_tokenizer, words

HEAD_DIM, KV_HEADS = 16, 2
FINGERPRINT = load(random_model(), "dense").info.fingerprint


def random_kernels(
    heads: int, head_dim: int, *, width: int = 5, seed: int = 0, places: int = 3
) -> LayerKernels:
    """With slots that differ and shares that blend much."""
    make = torch.Generator().manual_seed(seed)
    start = start_kernels(heads, head_dim, rank=4, width=width, places=places, seed=seed)
    return replace(
        start,
        bias=torch.randn(heads, 4, generator=make),
        slots=torch.randn(heads, places, 4, generator=make),
        share=torch.rand(heads, generator=make),
    )


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random kernels of the small model's two layers."""
    path = tmp_path_factory.mktemp("kernels") / "small.safetensors"
    layers = {layer: random_kernels(KV_HEADS, HEAD_DIM, seed=layer) for layer in (0, 1)}
    save_kernels(path, Kernels(model="small", fingerprints=(FINGERPRINT,), layers=layers))
    return path


def spec(kernels: Path | str, slots: int = 40, more: str = "") -> str:
    return f"lococo(slots={slots}, chunk_tokens=32, file='{kernels}'{more})"


def read(spec: str, num_tokens: int = 150, family: str = "Llama") -> Context:
    model = load(random_model(family), spec, tokenizer=word_tokenizer())
    return model.read(random_ids(num_tokens), progress=False)


# what stands in the slots


def brute_force(
    keys: list[list[float]],
    values: list[list[float]],
    received: list[float],
    kernels: LayerKernels | None,
    head: int,
    slots: int,
    heavy: int,
    local: int,
) -> list[tuple[int, list[float], list[float]]]:
    """Place, key and value of each slot of one head, number by number."""
    num_tokens = len(keys)
    latest = list(range(num_tokens - local, num_tokens))
    ranked = latest + sorted((s for s in range(num_tokens) if s not in latest), key=lambda s: -received[s])
    stay, anchors = ranked[:heavy], sorted(ranked[heavy:slots])
    rest = [s for s in range(num_tokens) if s not in stay]
    made = [(s, keys[s], values[s]) for s in stay]
    for number, anchor in enumerate(anchors):
        if kernels is None:
            share, logits = 0.5, [0.0 for _ in rest]
        else:
            share, logits = float(kernels.share[head]), []
            down, conv, bias = (getattr(kernels, name)[head].tolist() for name in ("down", "conv", "bias"))
            table, width = kernels.slots[head].tolist(), len(conv[0][0])
            channels = [
                [sum(x * row[r] for x, row in zip([*keys[s], *values[s]], down, strict=True)) for r in range(len(bias))]
                for s in rest
            ]  # fmt: skip
            at = 0.0 if len(anchors) == 1 else number * (len(table) - 1) / (len(anchors) - 1)
            low = min(int(at), len(table) - 2)
            weights = [a + (b - a) * (at - low) for a, b in zip(table[low], table[low + 1], strict=True)]
            for i in range(len(rest)):
                total = 0.0
                for r in range(len(bias)):
                    seen = bias[r]
                    for w in range(width):
                        j = i + w - width // 2
                        if 0 <= j < len(rest):
                            seen += sum(channels[j][c] * conv[r][c][w] for c in range(len(bias)))
                    total += weights[r] * max(0.0, seen)
                logits.append(total)
        top = max(logits)
        exps = [math.exp(x - top) for x in logits]
        mixed = [share * e / sum(exps) for e in exps]
        mixed[rest.index(anchor)] += 1 - share
        blend = [
            [sum(w * x[s][d] for w, s in zip(mixed, rest, strict=True)) for d in range(len(x[0]))]
            for x in (keys, values)
        ]
        made.append((anchor, blend[0], blend[1]))
    return sorted(made)


@pytest.mark.parametrize(
    ("heads", "num_tokens", "head_dim", "slots", "heavy", "local"),
    [(1, 23, 4, 9, 0.5, 0.25), (2, 31, 6, 30, 0.3, 0.0), (3, 17, 5, 2, 0.0, 0.0), (2, 40, 4, 13, 0.9, 0.9)],
)
@pytest.mark.parametrize("trained", [True, False])
def test_slots_are_those_of_a_plain_loop(
    heads: int, num_tokens: int, head_dim: int, slots: int, heavy: float, local: float, trained: bool
) -> None:
    make = torch.Generator().manual_seed(7)
    keys, values = torch.randn(2, heads, num_tokens, head_dim, generator=make)
    received = torch.rand(heads, num_tokens, generator=make)
    kernels = random_kernels(heads, head_dim) if trained else None
    places, new_keys, new_values = compress(
        keys, values, received, kernels, slots=slots, heavy=heavy, local=local
    )
    whole = slots - max(1, int(slots * (1 - heavy)))
    for head in range(heads):
        wanted = brute_force(
            keys[head].tolist(),
            values[head].tolist(),
            received[head].tolist(),
            kernels,
            head,
            slots,
            whole,
            int(slots * local),
        )
        assert places[head].tolist() == [place for place, _, _ in wanted]
        torch.testing.assert_close(
            new_keys[head], torch.tensor([k for _, k, _ in wanted]), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            new_values[head], torch.tensor([v for _, _, v in wanted]), atol=1e-5, rtol=1e-4
        )


def stepwise(
    ids: Tensor, kernels: Path, slots: int, chunk: int, heavy: float, local: float
) -> list[list[Tensor]]:
    """Places, keys and values in the end, per layer, from chunks read by a run whose slabs are put in by hand."""
    layers = load_kernels(kernels).layers
    model = load(random_model(), "dense")
    reader, run = model.reader(chunk_tokens=chunk), model.reader().new_run()
    for start in range(0, len(ids), chunk):
        piece = ids[start : start + chunk]
        received: dict[int, Tensor] = {}

        def watch(index: int, step: Step, received: dict[int, Tensor] = received) -> None:
            total = torch.zeros(KV_HEADS, step.store.num_tokens)
            logits = step.logits(step.queries, step.query_positions, 0, step.store.num_tokens)[0]
            for head in range(logits.shape[0]):
                for t in range(step.num_new):
                    seen = step.num_past + t + 1
                    total[head // 2, :seen] += logits[head, t, :seen].softmax(dim=0)
            received[index] = total

        run = run.fork()
        reader.watch(run, watch)
        reader.prefill(run, [piece])
        for index, layer in enumerate(run.layers):
            slab = layer.slabs[0]
            if slab.num_tokens > slots:
                places, keys, values = compress(
                    slab.keys[0], slab.values[0], received[index], layers[index].to(torch.device("cpu")),
                    slots=slots, heavy=heavy, local=local,
                )  # fmt: skip
                slab.keep(places[None])
                assert slab._keys is not None and slab._values is not None
                slab._keys, slab._values = keys[None], values[None]
    return [
        [layer.slabs[0].positions[0], layer.slabs[0].keys[0], layer.slabs[0].values[0]]
        for layer in run.layers
    ]


@pytest.mark.parametrize("num_tokens", [41, 97, 150])
def test_a_text_is_taken_in_chunk_by_chunk(kernels: Path, num_tokens: int) -> None:
    context = read(spec(kernels), num_tokens)
    wanted = stepwise(random_ids(num_tokens), kernels, 40, 32, 0.5, 0.25)
    for layer, (positions, keys, values) in zip(context.run.layers, wanted, strict=True):
        slab = layer.slabs[0]
        assert slab.positions[0].tolist() == positions.tolist()
        torch.testing.assert_close(slab.keys[0], keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(slab.values[0], values, atol=1e-5, rtol=1e-4)


def test_a_blend_remembers_tokens_that_choosing_would_forget() -> None:
    """A fake that only chose among tokens would give the same slots whatever stood in those it dropped."""
    make = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, 2, 50, 8, generator=make)
    received = torch.rand(2, 50, generator=make)
    kernels = random_kernels(2, 8)
    places, _, before = compress(keys, values, received, kernels, slots=20, heavy=0.5, local=0.25)
    dropped = next(s for s in range(50) if s not in places[0].tolist())
    changed = values.clone()
    changed[0, dropped] += 100.0
    again, _, after = compress(keys, changed, received, kernels, slots=20, heavy=0.5, local=0.25)
    assert torch.equal(again, places)
    assert (after[0] - before[0]).abs().max() > 0.1
    assert int((after[0] == before[0]).all(dim=1).sum()) == 10  # those that stay as they are
    assert torch.equal(after[1], before[1])  # each head mixes its own


# how much is held


def test_bytes_do_not_grow_with_the_text(kernels: Path) -> None:
    shorter, longer = read(spec(kernels), 100), read(spec(kernels), 230)
    room = 40 + spare_tokens(40)
    assert shorter.kept_tokens == longer.kept_tokens == 40
    each = 2 * KV_HEADS * HEAD_DIM * 4 + 8 * KV_HEADS  # keys, values and a position of each head
    assert shorter.kv_bytes == longer.kv_bytes == 2 * room * each
    at_most = 2 * (40 + spare_tokens(40) + 32 + spare_tokens(72)) * each
    assert longer.run.peak_bytes == shorter.run.peak_bytes <= at_most
    assert longer.num_tokens == 230


@pytest.mark.parametrize("engine_chunk", [7, 32, 512])
def test_chunks_are_its_own(kernels: Path, engine_chunk: int) -> None:
    whole = read(spec(kernels)).run.layers[1].slabs[0]
    model = load(random_model(), spec(kernels), chunk_tokens=engine_chunk)
    slab = model.read(random_ids(150), progress=False).run.layers[1].slabs[0]
    assert torch.equal(slab.positions, whole.positions)
    torch.testing.assert_close(slab.keys, whole.keys, atol=1e-4, rtol=1e-4)


def test_more_text_goes_on_from_the_slots(kernels: Path, tmp_path: Path) -> None:
    """96 tokens are whole chunks, so that what follows continues as if it had been one text."""
    ids = random_ids(150)
    first = load(random_model(), spec(kernels)).read(ids[:96], progress=False)
    first.save(tmp_path / "book.span")
    back = open_context(tmp_path / "book.span", first.model)
    whole = read(spec(kernels)).run.layers[1].slabs[0]
    for context in (first, back):
        slab = context.read(ids[96:]).run.layers[1].slabs[0]
        assert torch.equal(slab.positions, whole.positions)
        torch.testing.assert_close(slab.values, whole.values, atol=1e-5, rtol=1e-4)
    assert first.num_tokens == 96 and first.kept_tokens == 40


def test_a_text_within_the_slots_is_as_it_was() -> None:
    context = read("lococo(slots=150, chunk_tokens=32, file=uniform)")
    plain = read("dense")
    for layer, other in zip(context.run.layers, plain.run.layers, strict=True):
        torch.testing.assert_close(layer.slabs[0].keys, other.slabs[0].keys, atol=1e-5, rtol=1e-4)
        assert layer.slabs[0].positions.flatten().tolist() == list(range(150))


def test_sliding_layers_are_left_alone() -> None:
    context, plain = (
        read(s, family="Gemma3") for s in ("lococo(slots=40, chunk_tokens=32, file=uniform)", "dense")
    )
    kept = [layer.slabs[0].num_tokens for layer in context.run.layers]
    assert kept[0] >= 47 and kept[1] == 40
    torch.testing.assert_close(
        context.run.layers[0].slabs[0].keys[:, :, -47:], plain.run.layers[0].slabs[0].keys[:, :, -47:]
    )


def test_keys_that_are_kept_before_rotation_are_mixed_rotated(kernels: Path) -> None:
    """Under positions that change nothing, slots act as without them."""
    question = random_ids(6, seed=8)
    found = []
    for extra in ("", "self_extend(group_size=1, window_tokens=64) + "):
        model = load(random_model(), extra + spec(kernels))
        branch = model.read(random_ids(150), progress=False).run.fork()
        logits = model.reader().advance(branch, question)
        assert logits is not None
        found.append(logits)
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=1e-3)


def test_asking_works_and_generate_is_refused(kernels: Path) -> None:
    ids, model = random_ids(150), random_model()
    span = load(model, spec(kernels), tokenizer=word_tokenizer())
    context = span.read(words(ids), progress=False)
    answer = context.ask("w10 w11", max_new_tokens=4)
    assert answer.text and answer.usage.kv_bytes == context.kv_bytes
    assert context.with_turn("w10", "w12").kept_tokens == 40
    span.detach()
    with (
        pytest.raises(UserInputError, match="lococo reads a text in its own order"),
        applied(model, spec(kernels)),
    ):
        pass


def test_streams_are_cut_however_they_come() -> None:
    pieces = [torch.arange(5), torch.arange(5, 6), torch.arange(6, 17)]
    assert [x.tolist() for x in cut(pieces, 4)] == [list(range(i, min(i + 4, 17))) for i in range(0, 17, 4)]


# kernels on disk


def test_kernels_come_back_as_they_were_saved(kernels: Path, tmp_path: Path) -> None:
    found = load_kernels(kernels)
    assert (found.model, found.fingerprints, sorted(found.layers)) == ("small", (FINGERPRINT,), [0, 1])
    save_kernels(tmp_path / "again.safetensors", found)
    again = load_kernels(tmp_path / "again.safetensors")
    for index, layer in found.layers.items():
        assert all(torch.equal(getattr(layer, name), getattr(again.layers[index], name)) for name in NAMES)


def test_kernels_that_do_not_fit_are_refused_in_one_sentence(kernels: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no kernels for .*: .*small\.safetensors holds those of small"):
        load(random_model(seed=3), spec(kernels))
    with pytest.raises(
        ValueError, match=r"the bundled file holds those of reference.*train them with `python -m"
    ):
        load(random_model(), "lococo")
    with pytest.raises(ValueError, match=r"there is no file .*none\.safetensors; train them with"):
        load(random_model(), spec(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("no kernels")
    with pytest.raises(ValueError, match=r"text\.safetensors is no safetensors file"):
        load(random_model(), spec(tmp_path / "text.safetensors"))
    data = bytearray(kernels.read_bytes())
    data[-1] ^= 1
    (tmp_path / "bent.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="was altered since it was written"):
        load(random_model(), spec(tmp_path / "bent.safetensors"))
    one = Kernels(model="small", fingerprints=(FINGERPRINT,), layers={0: load_kernels(kernels).layers[0]})
    save_kernels(tmp_path / "one.safetensors", one)
    with pytest.raises(ValueError, match="has no kernels that fit layer 1"):
        load(random_model(), spec(tmp_path / "one.safetensors"))


def test_the_bundled_kernels_are_small_and_of_the_reference_model() -> None:
    found = load_kernels(BUNDLED)
    assert BUNDLED.stat().st_size < 300_000
    assert found.model == "reference" and len(found.fingerprints) == 3
    assert {tuple(layer.down.shape[:2]) for layer in found.layers.values()} == {(2, 128)}
    assert sorted(found.layers) == list(range(8))


def test_the_bundled_kernels_mix_better_than_equal_weights() -> None:
    """On a text that they were not trained on, in the layers' attention over what comes next."""
    model = load("reference", "dense", device="cpu")
    text = (Path(module.__file__).parents[4] / "LICENSE").read_text(encoding="utf-8")
    found = attended(model, encode(model.tokenizer, text)[:1536])
    how, made = Training(), load_kernels(BUNDLED).layers
    before, after = (
        sum(float(x) for index, layer in found.items() for x in errors(layer, kernels(index), how, 128))
        for kernels in (lambda index: None, lambda index: made[index].to(torch.device("cpu")))
    )
    assert after < 0.9 * before


# training them


def test_what_is_attended_is_what_the_model_attends() -> None:
    model, ids = load(random_model(), "dense"), random_ids(50)
    found = attended(model, ids)[1]
    for head, t in ((0, 49), (3, 17)):
        keys, values = found.keys[head // 2, : t + 1], found.values[head // 2, : t + 1]
        weights = (keys @ found.queries[head, t] * found.scale).softmax(dim=0)
        torch.testing.assert_close(found.outputs[head, t], weights @ values, atol=1e-5, rtol=1e-4)


def test_errors_are_none_while_slots_suffice_and_grow_with_fewer() -> None:
    text = attended(load(random_model(), "dense"), random_ids(128))[0]
    how = Training(slots=(100,), chunk_tokens=32)
    enough = [float(x) for x in errors(text, None, how, 100)]
    assert len(enough) == 3 and max(enough) < 1e-8
    few, fewer = (sum(float(x) for x in errors(text, None, how, slots)) for slots in (48, 16))
    assert 0 < few < fewer


def test_training_lowers_the_error_on_other_text() -> None:
    model = load(random_model(), "dense")
    rows = random_ids(6 * 96).view(6, 96)
    how = Training(slots=(16,), chunk_tokens=32, rank=4, width=3, rounds=6, queries=16)
    made = train_kernels(model, rows, how)
    other = attended(model, random_ids(96, seed=77))
    for index, text in other.items():
        before, after = (
            sum(float(x) for x in errors(text, kernels, how, 16)) for kernels in (None, made[index])
        )
        assert after < 0.97 * before


def test_rows_are_spread_over_the_text() -> None:
    rows = spread_rows(torch.arange(1000), 100, 4)
    assert rows[:, 0].tolist() == [0, 300, 600, 900] and rows.shape == (4, 100)
    assert len(spread_rows(torch.arange(250), 100, 4)) == 2


def test_the_command_makes_a_file_that_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out, text = tmp_path / "model", tmp_path / "small.safetensors", tmp_path / "text.txt"
    random_model().save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    text.write_text(words(random_ids(300)))
    small = ["--rows", "2", "--row-tokens", "100", "--chunk-tokens", "32", "--slots", "16", "24"]
    more = ["--rank", "4", "--width", "3", "--rounds", "2"]
    assert main([str(model), "--text", str(text), str(text), "--out", str(out), *small, *more]) == 0
    found = load_kernels(out)
    assert found.settings["slots"] == [16, 24] and found.settings["rows"] == 2
    context = load(str(model), f"lococo(slots=20, chunk_tokens=32, file='{out}')").read(random_ids(150))
    assert context.kept_tokens == 20
    assert main([str(model), "--text", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "there is no text at" in capsys.readouterr().err
    assert main([str(model), "--text", str(text), "--out", str(out), *small, "--width", "4"]) == 2
    assert "got width=4; allowed are odd numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("slots=1", "got slots=1; allowed is 2 or more"),
        ("chunk_tokens=0", "got chunk_tokens=0; allowed is 1 or more"),
        ("heavy=1", "got heavy=1, local=0.25; allowed are shares of the slots"),
        ("local=0.75", "got heavy=0.5, local=0.75; allowed are shares of the slots"),
    ],
)
def test_wrong_settings_are_refused(settings: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(f"lococo({settings})")


def test_another_storage_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="lococo and snapkv"):
        load(random_model(), "lococo(file=uniform) + snapkv(keep=0.5)")


def test_the_card_reads() -> None:
    card = read_card(module.__file__)
    assert (card.name, card.roles, card.training) == ("lococo", ("Storage", "Reading"), "required")
    assert card.paper_id == 75 and LoCoCo().slots == 128
    assert [p.name for p in card.parameters] == ["slots", "chunk_tokens", "heavy", "local", "file"]
    assert all(parameter.comment for parameter in card.parameters)
