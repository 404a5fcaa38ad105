"""The ensemble of windows against stock forwards over each window with the question, combined by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longspan.engine.api import applied, load, open_context
from longspan.engine.model import SpanModel
from longspan.engine.run import Run
from longspan.errors import UserInputError
from longspan.methods.positions.window_ensemble import WindowEnsemble
from tests.methods.positions.small import one_layer, one_model, one_rope, small_llama, worst
from tests.models import FAMILIES, random_ids, random_model, word_tokenizer, words

TEXT, QUESTION = random_ids(233), random_ids(11, seed=5)
SPEC = "window_ensemble(window_tokens=64)"


def windows_by_hand(ids: Tensor, window: int, head: int = 1) -> list[Tensor]:
    if len(ids) <= window:
        return [ids]
    own = window - head
    starts = [*range(head, len(ids) - own, own), len(ids) - own]
    return [torch.cat([ids[:head], ids[start : start + own]]) for start in starts]


@torch.no_grad()
def stock_rows(model: PreTrainedModel, parts: list[Tensor], question: Tensor) -> Tensor:
    """Logits `[N, V]` behind each window and the question, one plain forward a window."""
    return torch.stack([model(torch.cat([part, question])[None]).logits[0, -1] for part in parts])


def combined(rows: Tensor, combine_by: str = "logits", weights: str = "uniform", s: float = 1.0) -> Tensor:
    """Probabilities `[V]` of the ensemble, by the formulas of the method's docstring."""
    p = rows.double().softmax(-1)
    if weights == "entropy":
        w = (s * (p * p.log()).sum(-1)).exp()
    elif weights == "peak":
        w = p.amax(-1) ** s
    else:
        w = torch.ones(len(rows), dtype=torch.float64)
    w = (w / w.sum())[:, None]
    return (w * rows.double()).sum(0).softmax(-1) if combine_by == "logits" else (w * p).sum(0)


def asked(span: SpanModel, run: Run, question: Tensor) -> Tensor:
    """Probabilities `[V]` behind a question."""
    reader = span.reader()
    branch = reader.open_question(run, question)
    logits = reader.advance(branch, question)
    branch.give_back(run)
    assert logits is not None and logits.shape[0] == 1
    return logits[0].softmax(-1)


@pytest.mark.parametrize("chunk_tokens", [1024, 64, 3])
@pytest.mark.parametrize(("window", "head"), [(64, 1), (60, 0), (100, 7)])
def test_answers_as_the_stock_model_over_each_window(chunk_tokens: int, window: int, head: int) -> None:
    model, parts = small_llama(), windows_by_hand(TEXT, window, head)
    wanted = combined(stock_rows(model, parts, QUESTION))
    spec = f"window_ensemble(window_tokens={window}, head_tokens={head})"
    span = load(model, spec, chunk_tokens=chunk_tokens)
    run = span.read(TEXT, progress=False).run
    assert (run.num_rows, run.seen) == (len(parts), window)
    assert worst(asked(span, run, QUESTION), wanted) < 1e-4


@pytest.mark.parametrize("combine_by", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("weights", "sharpness"), [("uniform", 1.0), ("entropy", 1.0), ("entropy", 3.0), ("peak", 0.5)]
)
def test_weights_and_sums_are_the_formulas(combine_by: str, weights: str, sharpness: float) -> None:
    model = small_llama()
    model.lm_head.weight.data *= 30  # predictions that windows are sure of to different degrees
    rows = stock_rows(model, windows_by_hand(TEXT, 64), QUESTION)
    wanted = combined(rows, combine_by, weights, sharpness)
    method = WindowEnsemble(combine_by=combine_by, weights=weights, sharpness=sharpness)
    assert worst(method.combine(rows)[0].softmax(-1), wanted) < 1e-4
    given = "" if weights == "uniform" else f", sharpness={sharpness}"
    span = load(
        model, f"window_ensemble(window_tokens=64, combine_by={combine_by}, weights={weights}{given})"
    )
    assert worst(asked(span, span.read(TEXT).run, QUESTION), wanted) < 1e-4
    if (combine_by, weights) != ("logits", "uniform"):
        assert worst(combined(rows), wanted) > 1e-3


@pytest.mark.parametrize("combine_by", ["logits", "probabilities"])
def test_a_window_that_excludes_a_token_is_no_nan(combine_by: str) -> None:
    rows = torch.tensor([[0.0, -torch.inf, 1.0], [2.0, 0.0, 0.0]])
    for weights in ("uniform", "entropy", "peak"):
        got = WindowEnsemble(combine_by=combine_by, weights=weights).combine(rows).softmax(-1)
        assert bool(torch.isfinite(got).all())
        assert (got[0, 1] == 0) == (combine_by == "logits")


def test_decoding_goes_on_in_every_window() -> None:
    """Greedy tokens equal stock forwards over windows, question and the answer so far."""
    model, parts = random_model(), windows_by_hand(TEXT, 64)
    so_far, wanted = QUESTION, []
    for _ in range(6):
        token = int(combined(stock_rows(model, parts, so_far)).argmax())
        wanted.append(token)
        so_far = torch.cat([so_far, torch.tensor([token])])
    span = load(model, SPEC, tokenizer=word_tokenizer())
    context = span.read(words(TEXT), progress=False)
    assert context.num_tokens == len(context.run.ids) == 4 * 64
    assert list(context.ask(words(QUESTION), max_new_tokens=6).token_ids) == wanted


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 127, 128])
def test_texts_around_whole_windows(num_tokens: int) -> None:
    model, text = small_llama(), TEXT[:num_tokens]
    wanted = combined(stock_rows(model, windows_by_hand(text, 64), QUESTION))
    span = load(model, SPEC)
    assert worst(asked(span, span.read(text).run, QUESTION), wanted) < 1e-4


@pytest.mark.parametrize("window", [1, 2, 3, 10, 64, 232, 233, 500])
def test_windows_hold_the_whole_text(window: int) -> None:
    head = min(1, window - 1)
    places = WindowEnsemble(window_tokens=window, head_tokens=head).windows(233, window)
    wanted = windows_by_hand(torch.arange(233), window, head)
    assert [row.tolist() for row in places] == [part.tolist() for part in wanted]
    assert set(places.flatten().tolist()) == set(range(233))


def test_the_window_is_three_quarters_of_the_trained_one_by_default() -> None:
    span = load(small_llama(), "window_ensemble()")
    run = span.read(TEXT).run
    assert (run.num_rows, run.seen) == (2, 192)


def test_the_order_of_windows_does_not_matter() -> None:
    span = load(small_llama(), "window_ensemble(window_tokens=50, head_tokens=0)")
    parts = TEXT[:200].split(50)
    forward = asked(span, span.read(torch.cat(parts)).run, QUESTION)
    assert worst(asked(span, span.read(torch.cat(parts[::-1])).run, QUESTION), forward) < 1e-4


def test_reading_on_goes_behind_every_window_and_leaves_the_first_context_alone() -> None:
    model = load(random_model(), SPEC, tokenizer=word_tokenizer())
    first = model.read(words(TEXT), progress=False)
    before = asked(model, first.run, QUESTION)
    both = first.read(words(QUESTION))
    assert both.num_tokens == first.num_tokens + len(QUESTION) == 4 * 64 + 11
    assert both.run.origin.tolist()[-12:] == [232, *range(233, 244)]
    wanted = asked(model, first.run, torch.cat([QUESTION, QUESTION[:1]]))
    assert worst(asked(model, both.run, QUESTION[:1]), wanted) < 1e-4
    assert torch.equal(asked(model, first.run, QUESTION), before)


def test_sources_name_places_of_the_text_in_every_window(tmp_path: Path) -> None:
    model = load(random_model(seed=3), SPEC, tokenizer=word_tokenizer())
    context = model.read(words(TEXT), progress=False)
    assert context.run.origin.tolist() == [
        row for part in windows_by_hand(torch.arange(233), 64) for row in part
    ]
    answer = context.ask(words(QUESTION), max_new_tokens=12)
    assert answer.sources
    for source in answer.sources:
        assert int(TEXT[source.token]) in answer.token_ids
    context.save(tmp_path / "a.span")
    back = open_context(tmp_path / "a.span", model)
    assert back.num_tokens == context.num_tokens
    assert back.ask(words(QUESTION), max_new_tokens=12).sources == answer.sources


def test_evidence_lies_in_the_window_that_holds_it() -> None:
    """A head's attention in row b to position j counts for that window's token, and for what was read on, once."""
    from longspan.engine.sources import Tracer

    model = load(random_model(seed=3), SPEC, tokenizer=word_tokenizer())
    run = model.read(words(TEXT), progress=False).read(words(QUESTION)).run
    tracer = Tracer(run, run)
    weights = torch.ones(4, 1, 1)
    tracer._pending = [(weights, torch.tensor([[[5]], [[5]], [[-1]], [[70]]]))]
    for token in (int(run.ids[5]), int(run.ids[64 + 5]), int(QUESTION[70 - 64])):
        pending = list(tracer._pending)
        tracer.settle(token)
        tracer._pending = pending
    assert tracer.evidence.nonzero()[:, 0].tolist() == [5, 69, 256 + 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model = random_model(family)
    wanted = combined(stock_rows(model, windows_by_hand(TEXT, 64), QUESTION))
    span = load(model, SPEC, chunk_tokens=50)
    assert worst(asked(span, span.read(TEXT).run, QUESTION), wanted) < 1e-3


@pytest.mark.parametrize(
    "other",
    [
        "yarn(factor=2)",
        "self_extend(group_size=2, window_tokens=16)",
        "minference(vertical_tokens=8, slash_tokens=8, local_tokens=16, block_tokens=16, dense_teraflops=0)",
        "tokenselect(positions=stored)",
    ],
)
def test_beside_other_methods_each_window_is_read_as_alone(other: str) -> None:
    model, parts = small_llama(), windows_by_hand(TEXT, 64)
    alone = load(model, other, chunk_tokens=256)
    rows = []
    for part in parts:
        run = alone.read(part).run
        branch = alone.reader().open_question(run, QUESTION)
        rows.append(alone.reader().advance(branch, QUESTION))
    span = alone.with_methods(f"{other} + {SPEC}")
    got = asked(span, span.read(TEXT).run, QUESTION)
    assert worst(got, combined(torch.cat([row for row in rows if row is not None]))) < 1e-4


def test_storage_frees_in_every_window() -> None:
    span = load(small_llama(), f"lm_infinite(global_tokens=4, window_tokens=20) + {SPEC}")
    run = span.read(TEXT).run
    assert run.kept_tokens == 24 and run.num_rows == 4
    assert run.layers[0].slabs[0].positions[:, 0].tolist() == [[0, 1, 2, 3, *range(44, 64)]] * 4


def test_what_does_not_combine_says_why() -> None:
    with pytest.raises(ValueError, match="both decide how a text is read"):
        load(small_llama(), f"parallel_windows(window_tokens=64) + {SPEC}")
    with pytest.raises(
        ValueError, match="found_in_the_middle measures a text that is read as one, but window_ensemble"
    ):
        load(small_llama(), f"found_in_the_middle() + {SPEC}")
    with (
        pytest.raises(UserInputError, match="window_ensemble reads a text in its own order"),
        applied(small_llama(), SPEC),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_tokens": 0}, "got window_tokens=0; allowed is 1 or more, or none for 3/4"),
        ({"head_tokens": -1}, "got head_tokens=-1; allowed is 0 or more, and less than window_tokens"),
        ({"head_tokens": 8, "window_tokens": 8}, "got head_tokens=8; allowed is 0 or more, and less"),
        ({"combine_by": "votes"}, "got combine_by='votes'; allowed is logits or probabilities"),
        ({"weights": "best"}, "got weights='best'; allowed is uniform, entropy or peak"),
        ({"sharpness": 2.0}, "got sharpness=2 with weights=uniform, where it has no effect"),
        ({"weights": "peak", "sharpness": 0.0}, "got sharpness=0; allowed is a number above 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowEnsemble(**settings)


def test_a_head_that_fills_the_default_window_is_refused() -> None:
    with pytest.raises(ValueError, match="got head_tokens=192, but windows have 192 tokens; give less"):
        WindowEnsemble(head_tokens=192).check(one_model(one_layer(rope=one_rope())))
