"""Published contexts as real ones: chunks by bytes and by reading, equal to `read`, over links of any speed, or none any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import longspan
from longspan.engine.context import Context
from longspan.engine.model import SpanModel
from longspan.errors import UserInputError
from longspan.storage import contexts
from longspan.storage.arriving import Arriving, exact_bytes
from longspan.storage.cachegen import LEVELS, head_std, third_of
from longspan.storage.contexts import Streamed, publish_context, stream_context
from longspan.storage.published import MANIFEST, Encoded, FolderSource, Manifest, publish
from longspan.storage.range_server import RangeClient, serve
from longspan.storage.streaming import Costs
from tests.models import random_ids, random_model, word_tokenizer, words

TEXT = words(random_ids(950))
QUESTION = random_ids(7, seed=5)
TOKENSELECT = "tokenselect(top_tokens=32, sink_tokens=4, window_tokens=16, block_tokens=50)"
NO_LINK, FAST_LINK = 1e-3, 1e12
SLOW_MODEL = Costs(recompute_seconds_per_token=1.0)


def make(spec: Any = None, family: str = "Llama", **settings: Any) -> SpanModel:
    return longspan.load(
        random_model(family), spec, tokenizer=word_tokenizer(), **({"chunk_tokens": 100} | settings)
    )


def logits(context: Context) -> torch.Tensor:
    reader = context.model.reader()
    branch = reader.open_question(context.run, QUESTION)
    found = reader.advance(branch, QUESTION)
    assert found is not None
    return found


def held(context: Context) -> list[Any]:
    slabs = [slab.pack() for layer in context.run.layers for slab in layer.slabs]
    return [context.run.ids.tolist(), context.run.seen, context.run.phase, [facts for facts, _ in slabs]]


def assert_equal(context: Context, other: Context) -> None:
    """Bit for bit: what they hold, logits, answers, and the room behind them."""
    assert held(context) == held(other) and context.kv_bytes == other.kv_bytes
    for mine, theirs in zip(context.run.layers, other.run.layers, strict=True):
        for a, b in zip(mine.slabs, theirs.slabs, strict=True):
            assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
            assert torch.equal(a.positions, b.positions)
    assert torch.equal(logits(context), logits(other))
    answers = [x.ask("w5 w6", max_new_tokens=8) for x in (context, other)]
    assert answers[0].token_ids == answers[1].token_ids and answers[0].sources == answers[1].sources


def how(streamed: Streamed) -> list[str]:
    return [chunk.how for chunk in streamed.chunks]


@pytest.fixture
def estimate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Costs], None]:
    """What the first estimate of the model's speed is."""

    def set_to(costs: Costs) -> None:
        monkeypatch.setattr(contexts, "tried_costs", lambda reader, most_tokens: costs)

    return set_to


@pytest.fixture
def no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of the link stays, also while the model reads."""
    monkeypatch.setattr("longspan.storage.fetching._LOOK_SECONDS", 0.0)


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a chunk was read by the model")

    monkeypatch.setattr(Arriving, "read", refuse)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Phi3"])
@pytest.mark.parametrize(
    "spec", [None, "ntk(factor=4)", "self_extend(group_size=2, window_tokens=64)", "dynamic_ntk", TOKENSELECT]
)
def test_all_as_text_is_what_read_gives(family: str, spec: Any, tmp_path: Path, no_look: None) -> None:
    model = make(spec, family)
    context = model.read(TEXT)
    publish_context(context, tmp_path, chunk_tokens=200)
    streamed = stream_context(tmp_path, model, first_bytes_per_second=NO_LINK)
    assert how(streamed) == ["text"] * 5 and streamed.context.cached_tokens == 0
    assert [chunk.num_tokens for chunk in streamed.chunks] == [200] * 4 + [150]
    assert sum(chunk.num_bytes for chunk in streamed.chunks) == 4 * 950
    assert_equal(streamed.context, context)


@pytest.mark.parametrize("family", ["Llama", "Qwen3Moe", "Phi3"])
@pytest.mark.parametrize("spec", [None, "self_extend(group_size=2, window_tokens=64)", "dynamic_ntk"])
def test_all_exact_is_what_read_gives(
    family: str, spec: Any, tmp_path: Path, estimate: Callable[[Costs], None], no_reading: None
) -> None:
    model = make(spec, family)
    context = model.read(TEXT)
    publish_context(context, tmp_path, levels=[None, 2], chunk_tokens=200)
    estimate(SLOW_MODEL)
    streamed = stream_context(tmp_path, model)
    assert how(streamed) == ["exact"] * 5 and streamed.context.cached_tokens == 950
    assert_equal(streamed.context, context)
    assert streamed.context.whole and streamed.context.usage.seconds["open"] == streamed.seconds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_element_types(dtype: torch.dtype, tmp_path: Path, estimate: Callable[[Costs], None]) -> None:
    model = longspan.load(random_model(dtype=dtype), tokenizer=word_tokenizer())
    context = model.read(random_ids(130))
    publish_context(context, tmp_path, chunk_tokens=50)
    estimate(SLOW_MODEL)
    assert_equal(stream_context(tmp_path, model).context, context)


def test_bytes_and_text_by_turns(tmp_path: Path, estimate: Callable[[Costs], None]) -> None:
    model = make()
    context = model.read(TEXT)
    publish_context(context, tmp_path, chunk_tokens=200)
    file, manifest = tmp_path / "exact.bin", Manifest.of((tmp_path / MANIFEST).read_bytes())
    data = bytearray(file.read_bytes())
    for number in (0, 2, 3):
        data[manifest.levels[0].spans[number].first + 1000] ^= 16
    file.write_bytes(data)
    estimate(SLOW_MODEL)
    streamed = stream_context(tmp_path, model, first_bytes_per_second=FAST_LINK)
    # Having read chunk 0 in no time, the model may take others too; those that came altered it must.
    assert [how(streamed)[i] for i in (0, 2, 3)] == ["text"] * 3
    assert "chunk 0 of exact.bin was altered" in streamed.chunks[0].note
    assert_equal(streamed.context, context)


def test_every_order_of_bytes_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_look: None
) -> None:
    model = make()
    context = model.read(words(random_ids(330)))
    publish_context(context, tmp_path, levels=[None], chunk_tokens=100)
    wanted: list[Any] = []
    monkeypatch.setattr("longspan.storage.fetching.choose", lambda chunks, **_: wanted[-len(chunks)])
    for mask in range(16):
        wanted[:] = ["text" if mask >> i & 1 else 0 for i in range(4)]
        streamed = stream_context(tmp_path, model, first_bytes_per_second=FAST_LINK)
        assert how(streamed) == ["text" if choice == "text" else "exact" for choice in wanted]
        assert streamed.context.cached_tokens == sum(
            chunk.num_tokens for chunk in streamed.chunks if chunk.how == "exact"
        )
        assert_equal(streamed.context, context)


@pytest.mark.parametrize("level", [0, 2, 4])
def test_a_level_is_within_half_a_bin(
    level: int, tmp_path: Path, estimate: Callable[[Costs], None], no_reading: None
) -> None:
    model = make()
    context = model.read(TEXT)
    publish_context(context, tmp_path, levels=[level], chunk_tokens=500)
    estimate(SLOW_MODEL)
    streamed = stream_context(tmp_path, model)
    assert how(streamed) == [f"level{level}"] * 2 and not streamed.context.whole
    for index, (mine, theirs) in enumerate(zip(context.run.layers, streamed.context.run.layers, strict=True)):
        (slab,), (other,) = mine.slabs, theirs.slabs
        assert torch.equal(slab.positions, other.positions)
        third = third_of(index, len(context.run.layers))
        for name, bins in (("keys", LEVELS[level].key_bins), ("values", LEVELS[level].value_bins)):
            for start, stop in ((0, 500), (500, 950)):
                exact = getattr(slab, name)[:, :, start:stop]
                half = bins[third] * head_std(exact)[..., None, None] / 2
                assert ((getattr(other, name)[:, :, start:stop] - exact).abs() <= half * 1.001).all()
            assert not torch.equal(getattr(slab, name), getattr(other, name))
    assert streamed.context.kv_bytes == context.kv_bytes
    # what comes behind it is read over what it holds: the same steps over the same numbers
    branch = model.reader().open_question(streamed.context.run, QUESTION)
    assert torch.equal(logits(streamed.context), model.reader().advance(branch, QUESTION))
    assert (logits(streamed.context) - logits(context)).abs().max() > 0


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SpanModel, Context]]:
    model = make()
    context = model.read(TEXT)
    folder = tmp_path_factory.mktemp("published")
    publish_context(context, folder, chunk_tokens=200)
    yield folder, model, context


def test_a_fast_link_brings_bytes_and_a_slow_one_text(
    published: tuple[Path, SpanModel, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model, context = published
    slower = Arriving.read

    def slow(self: Any, text: bytes, before: Any) -> None:  # 0.1 s a chunk more
        slower(self, text, before)
        time.sleep(0.1)

    monkeypatch.setattr(Arriving, "read", slow)
    monkeypatch.setattr(contexts, "tried_costs", lambda *_: Costs(recompute_seconds_per_token=0.1 / 200))
    with serve(folder) as served:
        fast = stream_context(served.url, model)
        served.bytes_per_second = 100_000  # a second and more for a chunk
        slow_link = stream_context(served.url, model)
        assert longspan.open_context(served.url, model).num_tokens == 950
    assert how(fast) == ["exact"] * 5 and how(slow_link) == ["text"] * 5
    assert_equal(fast.context, context)
    assert_equal(slow_link.context, context)
    assert slow_link.seconds > 0.5 and sum(c.num_bytes for c in slow_link.chunks) < 100_000
    ready = [chunk.ready_seconds for chunk in slow_link.chunks]
    assert ready == sorted(ready) and ready[-1] <= slow_link.seconds


def test_a_deadline_takes_coarser_levels(
    published: tuple[Path, SpanModel, Context], estimate: Callable[[Costs], None], no_reading: None
) -> None:
    folder, model, context = published
    manifest = Manifest.of((folder / MANIFEST).read_bytes())
    exact = sum(chunk.level_bytes[0] for chunk in manifest.chunks)
    estimate(SLOW_MODEL)
    with serve(folder, bytes_per_second=exact / 4) as served:
        streamed = stream_context(served.url, model, deadline_seconds=2.0)
        back = longspan.open_context(served.url, model, deadline_seconds=2.0)
    assert set(how(streamed)) <= {"exact", *(f"level{i}" for i in range(5))}
    assert any(name.startswith("level") for name in how(streamed)) and streamed.seconds < 3.0
    assert not back.whole and back.ask("w5 w6", max_new_tokens=3).text
    assert (logits(back) - logits(context)).abs().max() < 1.0


def test_a_server_that_is_killed_midway(
    published: tuple[Path, SpanModel, Context],
    estimate: Callable[[Costs], None],
    monkeypatch: pytest.MonkeyPatch,
    no_look: None,
) -> None:
    folder, model, context = published
    estimate(SLOW_MODEL)
    get = RangeClient.get
    with serve(folder) as served:
        calls = 0

        def breaking(client: RangeClient, path: str, **part: Any) -> bytes:
            nonlocal calls
            calls += path == "exact.bin"
            if calls > 2:
                client._connection.close()
                served.url, client._connection.port = "", 9  # nobody listens there
            return get(client, path, **part)

        monkeypatch.setattr(RangeClient, "get", breaking)
        streamed = stream_context(served.url, model, first_bytes_per_second=FAST_LINK)
    assert how(streamed) == ["exact", "exact", "text", "text", "text"]
    assert all("broke off" in chunk.note for chunk in streamed.chunks[2:])
    assert_equal(streamed.context, context)


def test_a_server_that_is_not_there(published: tuple[Path, SpanModel, Context]) -> None:
    folder, model, _ = published
    with serve(folder) as served:
        url = served.url
    with pytest.raises(ConnectionError, match="check that it is up"):
        longspan.open_context(url, model)
    with serve(folder.parent) as served:
        with pytest.raises(UserInputError, match="answered 404"):
            longspan.open_context(served.url, model)
        assert longspan.open_context(f"{served.url}/{folder.name}", model).num_tokens == 950


def test_a_saved_file_is_published_without_a_model(
    published: tuple[Path, SpanModel, Context], tmp_path: Path
) -> None:
    folder, model, context = published
    context.save(tmp_path / "book.span")
    publish_context(tmp_path / "book.span", tmp_path / "out", chunk_tokens=200)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_it_goes_on_like_any_context(published: tuple[Path, SpanModel, Context], tmp_path: Path) -> None:
    folder, model, context = published
    streamed = stream_context(folder, model)
    more = words(random_ids(60, seed=9))
    assert_equal(streamed.context.read(more), context.read(more))
    streamed.context.save(tmp_path / "a.span")
    assert_equal(longspan.open_context(tmp_path / "a.span", model), context)


def test_the_default_cut_is_where_the_model_cuts(tmp_path: Path) -> None:
    for chunk_tokens, cut in ((100, 1500), (1024, 1024), (700, 1400), (2000, 2000)):
        context = make(chunk_tokens=chunk_tokens).read(random_ids(20))
        publish_context(context, tmp_path, levels=[None])
        assert Manifest.of((tmp_path / MANIFEST).read_bytes()).facts["cut_tokens"] == cut


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("snapkv(keep=0.5)", "cannot be published in chunks"),
        ("kivi(bits=4)", "cannot be published in chunks"),
        ("gemfilter(keep=64)", "cannot be published in chunks"),
    ],
)
def test_what_methods_dropped_or_coded_is_not_published(spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=message):
        publish_context(make(spec).read(random_ids(300)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_not_of_one_reading_is_not_published(tmp_path: Path) -> None:
    context = make().read(random_ids(300))
    context.save(tmp_path / "a.span", level=2)
    with pytest.raises(UserInputError, match="it was saved at a level"):
        publish_context(tmp_path / "a.span", tmp_path / "out")
    with pytest.raises(UserInputError, match="it was saved at a level"):
        publish_context(longspan.open_context(tmp_path / "a.span", make()), tmp_path / "out")
    sliding = make(family="MistralSliding").read(random_ids(300))
    with pytest.raises(UserInputError, match="cannot be published in chunks"):
        publish_context(sliding, tmp_path / "out")


def test_other_models_and_bad_settings_are_refused(
    published: tuple[Path, SpanModel, Context], tmp_path: Path
) -> None:
    folder, model, context = published
    with pytest.raises(UserInputError, match="was made with other weights"):
        longspan.open_context(folder, longspan.load(random_model(seed=1), tokenizer=word_tokenizer()))
    with pytest.raises(UserInputError, match="the model runs 'ntk"):
        longspan.open_context(folder, model.with_methods("ntk(factor=2)"))
    with pytest.raises(UserInputError, match="each with all layers; leave lazy out"):
        longspan.open_context(folder, model, lazy=True)
    with pytest.raises(UserInputError, match="got deadline_seconds=-1"):
        longspan.open_context(folder, model, deadline_seconds=-1)
    with pytest.raises(UserInputError, match="allowed is http://"):
        longspan.open_context("https://127.0.0.1/", model)
    context.save(tmp_path / "a.span")
    with pytest.raises(UserInputError, match="which is read as it is"):
        longspan.open_context(tmp_path / "a.span", model, deadline_seconds=1)
    for levels in ((), (2, 1), (None, None), (2, None)):
        with pytest.raises(UserInputError, match="finest first"):
            publish_context(context, tmp_path / "out", levels=levels)
    with pytest.raises(UserInputError, match="got level=7"):
        publish_context(context, tmp_path / "out", levels=(7,))
    with pytest.raises(UserInputError, match="got chunk_tokens=0"):
        publish_context(context, tmp_path / "out", chunk_tokens=0)
    assert not (tmp_path / "out").exists()


def test_where_cuts_matter_they_must_be_the_models(tmp_path: Path) -> None:
    spec = "dynamic_ntk"
    publish_context(make(spec).read(random_ids(300)), tmp_path, chunk_tokens=150)
    with pytest.raises(
        UserInputError, match="it is cut at every 150 tokens.*load the model with chunk_tokens=100"
    ):
        stream_context(tmp_path, make(spec))


def test_damage_that_text_cannot_mend_is_one_sentence(
    published: tuple[Path, SpanModel, Context], tmp_path: Path
) -> None:
    _, model, context = published
    publish_context(context, tmp_path, levels=[None], chunk_tokens=200)
    for name, message in (
        ("text.bin", "chunk 0 of text.bin was altered"),
        (MANIFEST, "the manifest cannot be read"),
    ):
        data = bytearray((tmp_path / name).read_bytes())
        data[5] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserInputError, match=f"cannot open the context at .*{message}"):
            longspan.open_context(tmp_path, model)
    with pytest.raises(UserInputError, match="is a folder; give the file"):
        longspan.open_context(tmp_path.parent, model)


def test_bytes_of_another_shape_are_read_from_their_text(
    published: tuple[Path, SpanModel, Context], tmp_path: Path, no_look: None
) -> None:
    folder, model, context = published
    manifest = Manifest.of((folder / MANIFEST).read_bytes())
    texts = manifest.text.texts(FolderSource(folder))
    wrong = [torch.zeros(1, 2, 200, 15)] * 2
    made = (
        Encoded(num_tokens=chunk.num_tokens, levels=(exact_bytes(wrong, wrong),), text=text)
        for chunk, text in zip(manifest.chunks, texts, strict=True)
    )
    publish(tmp_path, made, names=["exact"], facts=manifest.facts)
    streamed = stream_context(tmp_path, model, first_bytes_per_second=FAST_LINK)
    assert how(streamed) == ["text"] * 5 and "does not fit the model" in streamed.chunks[0].note
    assert_equal(streamed.context, context)


@pytest.mark.parametrize("facts", [{"layers": [0, 7]}, {"layers": None}, {"seen": 949}, {"cut_tokens": "x"}])
def test_facts_that_cannot_be_are_refused(facts: dict[str, Any], tmp_path: Path, no_look: None) -> None:
    model = make(TOKENSELECT)
    publish_context(model.read(TEXT), tmp_path, levels=[None], chunk_tokens=500)
    manifest = Manifest.of((tmp_path / MANIFEST).read_bytes())
    source = FolderSource(tmp_path)
    exact, texts = manifest.levels[0].texts(source), manifest.text.texts(source)
    made = [
        Encoded(num_tokens=chunk.num_tokens, levels=(part,), text=text)
        for chunk, part, text in zip(manifest.chunks, exact, texts, strict=True)
    ]
    publish(tmp_path / "out", made, names=["exact"], facts=dict(manifest.facts) | facts)
    with pytest.raises(UserInputError, match="cannot open the context at"):
        stream_context(tmp_path / "out", model, first_bytes_per_second=FAST_LINK)
