"""Saved contexts that can be trusted: damage anywhere is refused, a killed process leaves nothing half, layers stream in."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import random
import resource
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import longspan
from longspan.engine import save
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.save import tokenizer_hash
from longspan.engine.span_file import SpanFile
from longspan.engine.store import SPARE_TOKENS
from longspan.errors import UserInputError
from tests.models import random_ids, random_model, word_tokenizer, words

FORK = multiprocessing.get_context("fork")  # a child that need not load everything again


def make(spec: Any = None, *, num_layers: int = 2, **settings: Any) -> SpanModel:
    return longspan.load(random_model(num_layers=num_layers), spec, tokenizer=word_tokenizer(), **settings)


def held(context: Context) -> list[Any]:
    """Everything that a context holds, as plain values."""
    slabs = [slab.pack() for layer in context.run.layers for slab in layer.slabs]
    tensors = [{name: part.tolist() for name, part in parts.items()} for _, parts in slabs]
    return [context.run.ids.tolist(), context.run.seen, context.run.phase, [f for f, _ in slabs], tensors]


def rewrite(source: Path, target: Path, **changes: Any) -> None:
    """The file with a changed header, whose checksum is right."""
    with safe_open(source, "pt") as file:
        header = json.loads(file.metadata()["longspan"]) | changes
    text = json.dumps(header)
    metadata = {"longspan": text, "longspan_crc32": f"{zlib.crc32(text.encode()):08x}"}
    save_file(load_file(source), target, metadata)


def test_a_saved_context_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    model = make("snapkv(keep=0.5)")
    context = model.read(random_ids(300))
    context.save(tmp_path / "a.span")
    back = longspan.open_context(tmp_path / "a.span", model)
    assert held(back) == held(context) and back.kv_bytes == context.kv_bytes
    header = SpanFile(tmp_path / "a.span").header
    assert (header["format"], header["seen"], header["positions"]) == (2, 300, [0, 300])
    assert header["longspan"] == longspan.__version__ and header["spec"] == model.spec
    assert header["tokenizer"] == tokenizer_hash(word_tokenizer())
    assert list(load_file(tmp_path / "a.span")) and [p.name for p in tmp_path.iterdir()] == ["a.span"]


def test_every_altered_byte_is_refused(tmp_path: Path) -> None:
    model, place, draw = make(num_layers=1), tmp_path / "b.span", random.Random(0)
    model.read(random_ids(9)).save(tmp_path / "a.span")
    data = (tmp_path / "a.span").read_bytes()
    expected = held(longspan.open_context(tmp_path / "a.span", model))
    for at in {*range(64), *(draw.randrange(len(data)) for _ in range(400)), len(data) - 1}:
        altered = bytearray(data)
        altered[at] ^= 1 << draw.randrange(8)
        place.write_bytes(altered)
        try:
            assert held(longspan.open_context(place, model)) == expected  # padding of the tensors' table
            assert data[at : at + 1] == b" "
        except UserInputError as error:
            assert "damaged" in str(error) or "is not a saved context" in str(error) or "older" in str(error)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    model, draw = make(num_layers=1), random.Random(1)
    model.read(random_ids(40)).save(tmp_path / "a.span")
    data = (tmp_path / "a.span").read_bytes()
    for length in {0, 1, 7, 8, 9, len(data) - 1, *(draw.randrange(len(data)) for _ in range(60))}:
        (tmp_path / "b.span").write_bytes(data[:length])
        with pytest.raises(UserInputError, match="is not a saved context .or is cut short"):
            longspan.open_context(tmp_path / "b.span", model)
    (tmp_path / "b.span").write_bytes(data + b"more")
    with pytest.raises(UserInputError, match="is not a saved context"):
        longspan.open_context(tmp_path / "b.span", model)


def test_other_models_tokenizers_and_formats_are_refused(tmp_path: Path) -> None:
    file, model = tmp_path / "a.span", make()
    model.read("w3 w4 w5").save(file)
    other = copy.deepcopy(word_tokenizer())
    other.add_tokens(["w1000"])
    with pytest.raises(UserInputError, match="was made with another tokenizer"):
        longspan.open_context(file, longspan.load(random_model(), tokenizer=other))
    with pytest.raises(UserInputError, match="was made in float32, the model runs in bfloat16"):
        rewrite(file, tmp_path / "b.span", fingerprint=(half := _half()).info.fingerprint)
        longspan.open_context(tmp_path / "b.span", half)
    assert longspan.open_context(file, longspan.load(random_model())).num_tokens == 3
    with pytest.raises(UserInputError, match=r"a newer longspan \(format 3\), .* up to 2; update longspan"):
        rewrite(file, tmp_path / "b.span", format=3)
        longspan.open_context(tmp_path / "b.span", model)
    save_file(load_file(file), tmp_path / "b.span", {"longspan": json.dumps({"format": 1})})
    with pytest.raises(UserInputError, match=r"an older longspan \(format 1, without checksums\)"):
        longspan.open_context(tmp_path / "b.span", model)
    with pytest.raises(UserInputError, match="is a folder; give the file"):
        longspan.open_context(tmp_path, model)
    with pytest.raises(UserInputError, match="there is no file"):
        longspan.open_context(file / "inside", model)


def _half() -> SpanModel:
    return longspan.load(random_model(dtype=torch.bfloat16), tokenizer=word_tokenizer())


def test_a_tokenizers_hash_outlasts_its_use() -> None:
    tokenizer = copy.deepcopy(word_tokenizer())
    before = tokenizer_hash(tokenizer)
    tokenizer(["w3", "w4 w5"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(copy.deepcopy(tokenizer)) == before
    tokenizer.add_tokens(["new"])
    assert tokenizer_hash(tokenizer) != before
    assert tokenizer_hash(None) is None


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    model, file = make(), tmp_path / "a.span"
    model.read("w3 w4").save(file)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserInputError, match="cannot save the context in .*No space left.*; free some space"):
        model.read("w5 w6 w7").save(file)
    assert longspan.open_context(file, model).num_tokens == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.span"]


def test_a_limit_on_file_sizes_leaves_the_old_file(tmp_path: Path) -> None:
    model, file = make(), tmp_path / "a.span"
    model.read("w3 w4").save(file)
    long = model.read(random_ids(200))

    def limited(results: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            long.save(file)
        except UserInputError as error:
            results.put(str(error))

    results = FORK.SimpleQueue()
    child = FORK.Process(target=limited, args=(results,))
    child.start()
    child.join(60)
    assert "cannot save the context" in results.get() and "File too large" in str(os.strerror(errno.EFBIG))
    assert longspan.open_context(file, model).num_tokens == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.span"]


def test_a_killed_save_leaves_the_old_file_or_none(tmp_path: Path) -> None:
    model, draw = make(), random.Random(3)
    contexts = [model.read(random_ids(3000, seed=seed)) for seed in (1, 2)]
    wanted = [held(context)[:1] for context in contexts]

    def save_for_ever(file: Path) -> None:
        while True:
            for context in contexts:
                context.save(file)

    outcomes = set()
    for attempt in range(12):
        file = tmp_path / f"{attempt // 4}.span"  # the first times there is none, then an old one
        child = FORK.Process(target=save_for_ever, args=(file,))
        child.start()
        time.sleep(draw.uniform(0.0, 0.03))
        child.kill()
        child.join(60)
        if file.exists():
            found = held(longspan.open_context(file, model))[:1]
            assert found in wanted
            outcomes.add(wanted.index(found))
    contexts[0].save(tmp_path / "0.span")
    contexts[0].save(tmp_path / "1.span")
    contexts[0].save(tmp_path / "2.span")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.span", "1.span", "2.span"]


# layers that stream in


def test_lazy_layers_give_the_same_answer(tmp_path: Path) -> None:
    model = make(num_layers=4)
    context = model.read(random_ids(500))
    context.save(tmp_path / "a.span")
    expected = context.ask("w5 w6", max_new_tokens=6)
    lazy = longspan.open_context(tmp_path / "a.span", model, lazy=True)
    assert lazy.num_tokens == 500
    for _ in range(2):
        answer = lazy.ask("w5 w6", max_new_tokens=6)
        assert answer.token_ids == expected.token_ids and answer.sources == expected.sources
    assert held(lazy) == held(context) and lazy.kv_bytes == context.kv_bytes
    assert lazy.read("w9").num_tokens == 501


def test_a_question_waits_for_a_layer_only_when_it_gets_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(num_layers=4)
    model.read(random_ids(300)).save(tmp_path / "a.span")
    slow, began = SpanFile.tensor, time.perf_counter()
    monkeypatch.setattr(SpanFile, "tensor", lambda file, name: _later(slow, file, name))
    lazy = longspan.open_context(tmp_path / "a.span", model, lazy=True)
    assert time.perf_counter() - began < 0.1
    reached: list[float] = []
    reader, branch = model.reader(), lazy.run.fork()
    assert time.perf_counter() - began < 0.1
    reader.watch(branch, lambda layer, step: reached.append(time.perf_counter() - began))
    reader.advance(branch, random_ids(3))
    waits = [later - sooner for sooner, later in zip(reached, reached[1:], strict=False)]
    assert len(reached) == 4 and reached[0] < 0.9 and min(waits) > 0.2


def _later(read: Any, file: SpanFile, name: str) -> torch.Tensor:
    if name.endswith("keys"):
        time.sleep(0.3)
    return read(file, name)  # type: ignore[no-any-return]


def test_damage_found_late_is_the_same_sentence_and_no_hang(tmp_path: Path) -> None:
    model = make(num_layers=4)
    model.read(random_ids(300)).save(tmp_path / "a.span")
    data = bytearray((tmp_path / "a.span").read_bytes())
    with safe_open(tmp_path / "a.span", "pt") as file:
        values = file.get_tensor("layer.3.slab.0.values").numpy().tobytes()
    data[data.index(values[:64]) + 20] ^= 4
    (tmp_path / "b.span").write_bytes(data)
    with pytest.raises(UserInputError) as eager:
        longspan.open_context(tmp_path / "b.span", model)
    lazy = longspan.open_context(tmp_path / "b.span", model, lazy=True)
    for _ in range(2):
        with pytest.raises(
            UserInputError, match=r"damaged context \(layer.3.slab.0.values was altered\)"
        ) as late:
            lazy.ask("w5 w6")
        assert str(late.value) == str(eager.value)
    with pytest.raises(UserInputError, match="damaged context"):
        lazy.save(tmp_path / "c.span")
    assert not (tmp_path / "c.span").exists()


def test_a_reading_method_is_loaded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("gemfilter(keep=64)")
    context = model.read(random_ids(200))
    context.save(tmp_path / "a.span")
    monkeypatch.setattr(save, "LayerLoader", None)
    lazy = longspan.open_context(tmp_path / "a.span", model, lazy=True)
    assert lazy.ask("w5 w6", max_new_tokens=4).token_ids == context.ask("w5 w6", max_new_tokens=4).token_ids


# forks and appending


def test_forks_share_memory_until_they_grow_apart() -> None:
    model = make()
    parent = model.read(random_ids(400))
    before = parent.ask("w5 w6", max_new_tokens=6).token_ids
    first, second = parent.fork(), parent.fork()

    def place(context: Context) -> int:
        return context.run.layers[0].slabs[0].keys.data_ptr()

    assert place(first) == place(second) == place(parent)
    first.append(words(random_ids(50, seed=1)))
    assert place(first) == place(parent), "it fits the spare room"
    second.append(random_ids(50, seed=2))
    assert place(second) != place(parent)
    first.append(random_ids(SPARE_TOKENS, seed=3).tolist())
    assert place(first) != place(parent), "it does not fit"
    assert (parent.num_tokens, first.num_tokens, second.num_tokens) == (400, 450 + SPARE_TOKENS, 450)
    answers = [context.ask("w5 w6", max_new_tokens=6).token_ids for context in (parent, first, second)]
    assert answers[0] == before and len(set(answers)) == 3
    alone = model.read(torch.cat([random_ids(400), random_ids(50, seed=2)]))
    assert alone.ask("w5 w6", max_new_tokens=6).token_ids == answers[2]


def test_append_changes_this_context_and_read_does_not() -> None:
    model = make()
    context = model.read("w3 w4 w5")
    longer = context.read("w6 w7")
    assert (context.num_tokens, longer.num_tokens) == (3, 5)
    context.append([6, 7])
    assert context.num_tokens == 5 and torch.equal(context.run.ids, longer.run.ids)
    assert context.ask("w9", max_new_tokens=4).token_ids == longer.ask("w9", max_new_tokens=4).token_ids
    for bad, message in (
        (" ", "the text is empty"),
        ([3, 999], "has ids 0 to 499"),
        (b"w3", "got a bytes where a text is needed"),
    ):
        with pytest.raises(UserInputError, match=message):
            context.append(bad)  # type: ignore[arg-type]
    assert context.num_tokens == 5


def test_append_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(num_layers=3)
    context = model.read(random_ids(100))
    before = context.ask("w5", max_new_tokens=5).token_ids
    real = SpanModel.reader

    def failing(self: SpanModel, *args: Any) -> Any:
        reader = real(self, *args)
        new_fork = context.run.fork

        def fork() -> Any:
            branch = new_fork()
            branch.watchers.append(lambda layer, step: (_ for _ in ()).throw(KeyboardInterrupt))
            return branch

        monkeypatch.setattr(context.run, "fork", fork)
        return reader

    with monkeypatch.context() as patch:
        patch.setattr(SpanModel, "reader", failing)
        with pytest.raises(KeyboardInterrupt):
            context.append("w6 w7 w8")
    monkeypatch.undo()
    assert context.num_tokens == 100 and context.ask("w5", max_new_tokens=5).token_ids == before
