"""A store of contexts: what serves which text, what is forgotten, and what survives damage, crashes and other processes."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import longspan
from longspan import ContextStore
from longspan.card import all_cards
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.engine.prefix import BLOCK_TOKENS, Trail, depends_on_cuts, serves_prefixes
from longspan.engine.reader import ModelReader
from longspan.engine.shelf_index import INDEX
from longspan.errors import UserInputError
from tests.models import random_ids, random_model, word_tokenizer, words

FORK = multiprocessing.get_context("fork")
QUESTION = random_ids(7, seed=99)
pytestmark = pytest.mark.filterwarnings("error")


def make(spec: Any = None, *, family: str = "Llama", **settings: Any) -> SpanModel:
    return longspan.load(random_model(family), spec, tokenizer=word_tokenizer(), **settings)


def next_logits(context: Context) -> torch.Tensor:
    reader = context.model.reader()
    logits = reader.advance(reader.open_question(context.run, QUESTION), QUESTION)
    assert logits is not None
    return logits


def equal(context: Context, other: Context) -> None:
    torch.testing.assert_close(next_logits(context), next_logits(other), atol=1e-5, rtol=1e-5)
    assert context.num_tokens == other.num_tokens and context.kept_tokens == other.kept_tokens
    assert context.kv_bytes == other.kv_bytes


def joined(*parts: tuple[int, int]) -> torch.Tensor:
    """Texts of (tokens, seed), one after another."""
    return torch.cat([random_ids(tokens, seed=seed) for tokens, seed in parts])


def test_the_same_text_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = make(), ContextStore(tmp_path / "deep" / "store")
    text = words(random_ids(300))
    first = store.read(model, text)
    assert (first.usage.prompt_tokens, first.usage.cached_tokens) == (300, 0)
    monkeypatch.setattr(ModelReader, "prefill", None)
    for same in (text, random_ids(300), iter([text[:500], text[500:]])):
        again = store.read(model, same)
        assert (again.usage.prompt_tokens, again.usage.cached_tokens) == (0, 300)
        equal(again, first)
    assert len(store.list()) == 1


# which saved context serves which text: (spec, tokens saved, tokens in common, tokens wanted) -> tokens that serve
CASES = [
    ("dense", 300, 300, 500, 300),
    ("dense", 700, 600, 650, 600),
    ("dense", 700, 400, 400, 400),
    ("dense", 200, 100, 400, 0),  # not one whole block in common
    ("yarn(factor=2)", 300, 300, 500, 300),
    ("self_extend(window_tokens=64)", 700, 600, 650, 600),
    ("dynamic_ntk", 300, 300, 500, 256),
    ("dynamic_ntk", 320, 320, 500, 320),
    ("dynamic_ntk", 700, 600, 650, 576),
    ("minference", 300, 300, 500, 256),
    ("minference", 320, 320, 500, 320),
    ("minference", 700, 600, 650, 576),
    ("tokenselect(top_tokens=16, window_tokens=16, sink_tokens=4, block_tokens=64)", 320, 320, 500, 320),
    ("snapkv(keep=0.5)", 300, 300, 500, 0),
    ("snapkv(keep=0.5)", 700, 600, 650, 0),
    ("snapkv(keep=0.5)", 300, 300, 300, 300),
    ("gemfilter(keep=64)", 300, 300, 500, 0),
]


@pytest.mark.parametrize(("spec", "saved", "common", "wanted", "served"), CASES)
def test_a_prefix_serves_exactly_where_it_may(
    tmp_path: Path, spec: str, saved: int, common: int, wanted: int, served: int
) -> None:
    model, store = make(spec, chunk_tokens=64), ContextStore(tmp_path)
    store.read(model, joined((common, 1), (saved - common, 2)))
    text = joined((common, 1), (wanted - common, 3))
    context, alone = store.read(model, text), model.read(text)
    assert context.usage.cached_tokens == served
    equal(context, alone)
    if "Reading" not in spec:
        assert (
            context.ask("w5 w6", max_new_tokens=5).token_ids == alone.ask("w5 w6", max_new_tokens=5).token_ids
        )
    assert store.read(model, text).usage.cached_tokens == wanted


def test_the_longest_of_several_serves(tmp_path: Path) -> None:
    model, store = make(), ContextStore(tmp_path)
    for tokens in (260, 520, 390):
        store.read(model, joined((1000, 1))[:tokens])
    assert [entry.num_tokens for entry in store.list()] == [390, 260, 520]
    assert store.read(model, joined((450, 1), (50, 2))).usage.cached_tokens == 390, (
        "a whole block would be 512"
    )
    assert store.read(model, joined((515, 1), (5, 2))).usage.cached_tokens == 515
    assert store.read(model, joined((600, 1), (50, 3))).usage.cached_tokens == 520


def test_a_sliding_window_is_read_on_but_not_cropped(tmp_path: Path) -> None:
    model, store = make(family="Gemma3"), ContextStore(tmp_path)
    store.read(model, joined((600, 1)))
    on, back = joined((600, 1), (40, 2)), joined((560, 1), (40, 2))
    for text, served in ((on, 600), (back, 0)):
        context = store.read(model, text)
        assert context.usage.cached_tokens == served
        equal(context, model.read(text))


@pytest.mark.parametrize("name", sorted(all_cards()))
def test_every_method_finds_its_text_again(name: str, tmp_path: Path) -> None:
    model, store = make(all_cards()[name].example), ContextStore(tmp_path)
    text = random_ids(200)
    store.read(model, text)
    again = store.read(model, text)
    assert again.cached_tokens == 200
    equal(again, model.read(text))
    assert serves_prefixes(model.plan) or depends_on_cuts(model.plan)


def test_other_models_specs_and_chunks_have_texts_of_their_own(tmp_path: Path) -> None:
    store, text = ContextStore(tmp_path), random_ids(300)
    models = [make(), make("pi(factor=2)"), make(chunk_tokens=64)]
    models += [longspan.load(random_model(seed=3), tokenizer=word_tokenizer()), longspan.load(random_model())]
    for number, model in enumerate(models, start=1):
        assert store.read(model, text).cached_tokens == 0 and len(store.list()) == number
    assert all(store.read(model, text).cached_tokens == 300 for model in models)


def test_what_was_read_on_under_a_method_is_found_by_name_only(tmp_path: Path) -> None:
    model, store = make("snapkv(keep=0.5)"), ContextStore(tmp_path)
    longer = model.read(random_ids(200)).read(random_ids(100, seed=1))
    key = store.save(longer, "talk")
    whole = store.read(model, longer.run.ids)
    assert whole.cached_tokens == 0
    for reference in (key, "talk"):
        equal(store.open(model, reference), longer)


def test_names_belong_to_the_last_context_that_got_them(tmp_path: Path) -> None:
    model, store = make(), ContextStore(tmp_path)
    first, second = model.read("w3 w4"), model.read("w5 w6 w7")
    key = store.save(first, "a")
    assert store.save(first) == key and store.list()[0].name == "a"
    store.save(second, "a")
    assert {entry.name: entry.num_tokens for entry in store.list()} == {"a": 3, None: 2}
    assert store.rebuild() == 2
    assert {entry.name: entry.num_tokens for entry in store.list()} == {"a": 3, None: 2}
    assert store.open(model, "a", lazy=True).cached_tokens == 3
    with pytest.raises(UserInputError, match="there is no context 'b' in"):
        store.open(model, "b")
    with pytest.raises(UserInputError, match="got name=' '"):
        store.save(first, " ")
    store.remove("a")
    assert [entry.key for entry in store.list()] == [key]
    assert [path.name for path in tmp_path.glob("*.span")] == [f"{key}.span"]


# bytes


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    model = make()
    size = _bytes_of_one(model, tmp_path / "one")
    store = ContextStore(tmp_path / "store", max_bytes=3 * size + size // 2)
    texts = [random_ids(300, seed=seed) for seed in range(5)]
    for text in texts[:3]:
        store.read(model, text)
    store.read(model, texts[0])
    store.read(model, texts[3])
    kept = {seed for seed, text in enumerate(texts) if _has(store, model, text)}
    assert kept == {0, 2, 3}
    assert sum(entry.num_bytes for entry in store.list()) <= 3.5 * size
    assert {path.name for path in store.folder.glob("*.span")} == {entry.file for entry in store.list()}
    small = ContextStore(tmp_path / "store", max_bytes=size + size // 2)
    assert len(small.list()) == 1
    small.read(model, texts[4])
    assert [entry.num_tokens for entry in small.list()] == [300] and _has(small, model, texts[4])


def _bytes_of_one(model: SpanModel, folder: Path) -> int:
    store = ContextStore(folder)
    store.read(model, random_ids(300))
    return store.list()[0].num_bytes


def _has(store: ContextStore, model: SpanModel, text: torch.Tensor) -> bool:
    key = store.read(model, text[:1]) and None  # never a use of the text itself
    assert key is None
    space = next(entry.space for entry in store.list() if entry.num_tokens == 1)
    store.remove(Trail(space, text[:1]).key(1))
    return Trail(space, text).key(len(text)) in {entry.key for entry in store.list()}


def test_a_context_larger_than_the_store_is_refused(tmp_path: Path) -> None:
    model, store = make(), ContextStore(tmp_path, max_bytes=10_000)
    with pytest.raises(
        UserInputError, match="has [0-9,]+ bytes, the store .* may have 10,000; give a larger"
    ):
        store.save(model.read(random_ids(300)))
    with pytest.warns(UserWarning, match="read, but not saved: the context has"):
        context = store.read(model, random_ids(300))
    equal(context, model.read(random_ids(300)))
    assert store.list() == [] and list(tmp_path.glob("*.span")) == []
    for bad in (0, -1, 1.5, True):
        with pytest.raises(UserInputError, match="got max_bytes="):
            ContextStore(tmp_path, max_bytes=bad)  # type: ignore[arg-type]


def test_a_store_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserInputError, match="file is a file; give a folder for the store"):
        ContextStore(tmp_path / "file")
    with pytest.raises(UserInputError, match="cannot keep contexts in"):
        ContextStore(tmp_path / "file" / "store")


# damage


def test_a_file_that_is_gone_or_damaged_is_read_again(tmp_path: Path) -> None:
    model, store, text = make(), ContextStore(tmp_path), random_ids(300)
    store.read(model, text)
    file = tmp_path / store.list()[0].file
    file.unlink()
    assert store.read(model, text).cached_tokens == 0 and store.read(model, text).cached_tokens == 300
    data = bytearray(file.read_bytes())
    for at in (len(data) - 100, 40):
        altered = bytearray(data)
        altered[at] ^= 1
        file.write_bytes(altered)
        assert [problem.file for problem in store.verify()] == [file.name]
        with pytest.warns(UserWarning, match="left out of the store: .*"):
            context = store.read(model, text)
        assert context.cached_tokens == 0
        equal(context, model.read(text))
        assert store.verify() == [] and store.read(model, text).cached_tokens == 300
    file.unlink()
    with pytest.raises(UserInputError, match="there is no context"):
        store.open(model, file.stem)
    assert store.list() == []


@pytest.mark.parametrize("damage", ["missing", "garbage", "cut", "empty", "flipped"])
def test_an_index_that_is_lost_or_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    model, store = make(), ContextStore(tmp_path)
    for seed in range(3):
        store.read(model, random_ids(300, seed=seed))
    before = {entry.key for entry in store.list()}
    index = tmp_path / INDEX
    data = index.read_bytes()
    for beside in tmp_path.glob(f"{INDEX}-*"):
        beside.unlink()
    if damage == "missing":
        index.unlink()
    else:
        flipped = data[:100] + bytes(byte ^ 255 for byte in data[100:])
        index.write_bytes(
            {"garbage": b"x" * 5000, "cut": data[:5000], "empty": b"", "flipped": flipped}[damage]
        )
    store = ContextStore(tmp_path)
    assert {entry.key for entry in store.list()} == before
    assert all(store.read(model, random_ids(300, seed=seed)).cached_tokens == 300 for seed in range(3))
    index.unlink()  # while it is in use
    assert store.read(model, random_ids(300, seed=1)).cached_tokens == 300
    assert store.rebuild() == 3


def test_an_index_of_the_future_is_refused(tmp_path: Path) -> None:
    ContextStore(tmp_path)
    with sqlite3.connect(tmp_path / INDEX) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(UserInputError, match=r"a newer longspan \(schema 9\).*update longspan"):
        ContextStore(tmp_path)


def test_files_that_somebody_puts_there_are_listed(tmp_path: Path) -> None:
    model = make()
    store = ContextStore(tmp_path)
    model.read(random_ids(300)).save(tmp_path / "book.span")
    (tmp_path / "other.span").write_text("no context")
    store = ContextStore(tmp_path)
    assert [entry.file for entry in store.list()] == ["book.span"]
    assert [problem.file for problem in store.verify()] == ["other.span"]
    assert store.read(model, random_ids(300)).cached_tokens == 300


def test_hashes_are_chained() -> None:
    ids = random_ids(3 * BLOCK_TOKENS + 10)
    trail, other = Trail("s", ids), ids.clone()
    other[0] += 1
    assert len(trail.hashes) == 4 and not set(trail.hashes[1:]) & set(Trail("s", other).hashes)
    assert trail.hashes[:3] == Trail("s", ids[: 2 * BLOCK_TOKENS + 1]).hashes
    keys = {trail.key(n) for n in range(len(ids) + 1)}
    assert len(keys) == len(ids) + 1 and Trail("t", ids).key(5) not in keys


# several processes, and crashes


def _texts() -> list[torch.Tensor]:
    """20 texts that share beginnings of many lengths."""
    draw = random.Random(5)
    return [joined((draw.randrange(200, 900), 1), (draw.randrange(1, 120), seed)) for seed in range(20)]


@pytest.mark.parametrize("max_bytes", [None, 1_500_000])
def test_processes_that_share_a_store(tmp_path: Path, max_bytes: int | None) -> None:
    model, texts = make(), _texts()
    expected = [model.read(text).ask("w5 w6", max_new_tokens=4).token_ids for text in texts]

    def work(seed: int, results: Any) -> None:
        store, order = ContextStore(tmp_path, max_bytes), list(range(20))
        random.Random(seed).shuffle(order)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = {n: store.read(model, texts[n]) for n in order}
        results.put(
            (
                {n: context.ask("w5 w6", max_new_tokens=4).token_ids for n, context in found.items()},
                sum(context.cached_tokens for context in found.values()),
            )
        )

    results = FORK.Queue()
    children = [FORK.Process(target=work, args=(seed, results)) for seed in (1, 2)]
    for child in children:
        child.start()
    for answers, cached in [results.get(timeout=120) for _ in children]:
        assert [answers[n] for n in range(20)] == expected
        assert cached > 0
    for child in children:
        child.join(60)
    store = ContextStore(tmp_path, max_bytes)
    assert store.verify() == []
    assert {path.name for path in tmp_path.glob("*.span")} == {entry.file for entry in store.list()}
    if max_bytes is None:
        assert len(store.list()) == 20
    else:
        assert sum(entry.num_bytes for entry in store.list()) <= max_bytes


def test_a_killed_process_leaves_a_store_that_is_whole(tmp_path: Path) -> None:
    model, draw = make(), random.Random(7)
    contexts = [model.read(random_ids(600, seed=seed)) for seed in range(4)]
    expected = {tuple(context.run.ids.tolist()): next_logits(context) for context in contexts}

    def save_for_ever() -> None:
        store = ContextStore(tmp_path, max_bytes=1_300_000)
        while True:
            for context in contexts:
                store.save(context)

    for _ in range(10):
        child = FORK.Process(target=save_for_ever)
        child.start()
        time.sleep(draw.uniform(0.01, 0.12))
        child.kill()
        child.join(60)
        store = ContextStore(tmp_path, max_bytes=1_300_000)
        assert not list(tmp_path.glob(".*.partial"))
        assert store.verify() == []
        listed = store.list()
        assert {path.name for path in tmp_path.glob("*.span")} == {entry.file for entry in listed}
        assert sum(entry.num_bytes for entry in listed) <= 1_300_000
        for entry in listed:
            context = store.open(model, entry.key)
            assert torch.equal(next_logits(context), expected[tuple(context.run.ids.tolist())])
    assert listed


def test_a_partial_file_that_is_being_written_stays(tmp_path: Path) -> None:
    from longspan.engine.span_file import written_beside

    (tmp_path / ".old.span.x.partial").write_bytes(b"left by a process that died")
    with written_beside(tmp_path / "a.span", {}, {}) as partial:
        ContextStore(tmp_path)
        assert [path.name for path in tmp_path.glob(".*.partial")] == [partial.name]


def test_a_file_that_is_removed_while_it_is_read_goes_on(tmp_path: Path) -> None:
    model, store = make(), ContextStore(tmp_path)
    context = store.read(model, random_ids(400))
    lazy = store.open(model, store.list()[0].key, lazy=True)
    store.remove(store.list()[0].key)
    assert store.list() == [] and list(tmp_path.glob("*.span")) == []
    equal(lazy, context)
