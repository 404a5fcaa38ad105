"""Questions of a document's own words, and the teacher's answers with their distributions."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch

from longspan.engine.api import load
from longspan.training.cartridges.config import CartridgeConfig
from longspan.training.cartridges.self_study import (
    PROBES,
    QUESTION_WORDS,
    choose,
    is_about,
    span_question,
    split_document,
    study,
)
from tests.models import random_ids, random_model, word_tokenizer, words

SENTENCE = "The beekeeper of Marlton keeps a plain almanac in the granary."
TEXT = words(random_ids(90))


def test_a_question_has_words_of_its_sentence_only() -> None:
    own = {word.strip(".").lower() for word in SENTENCE.split()}
    known = own | {word.lower() for word in " ".join(QUESTION_WORDS).split()} | {"is", "said", "does"}
    for seed in range(200):
        question = span_question(SENTENCE, random.Random(seed))
        assert {word.strip("?").lower() for word in question.split()} <= known
        assert len(question.split()) >= 1


def test_sentences_take_turns_and_then_those_with_answers_are_preferred() -> None:
    hits = [0, 2, 0, 0]
    rng = random.Random(0)
    assert [choose(n, hits, rng) for n in range(PROBES * 4)] == [0, 1, 2, 3] * PROBES
    later = [choose(PROBES * 4 + n, hits, rng) for n in range(200)]
    assert later.count(1) > 150 and len(set(later)) > 1


def test_an_answer_is_about_a_sentence_when_it_tells_what_the_question_did_not() -> None:
    assert is_about(SENTENCE, "What does the beekeeper keep?", "a plain almanac")
    assert not is_about(SENTENCE, "Who keeps a plain almanac?", "a plain almanac")
    assert not is_about(SENTENCE, "Who keeps a plain almanac?", "the quartermaster")
    assert is_about("The code is 7.", "What is the code?", "7")


def test_sentences_of_one_word_are_left_out() -> None:
    assert split_document("Yes. He went home. It rained.") == ["He went home.", "It rained."]
    assert split_document("Yes.") == ["Yes."]


@pytest.mark.parametrize("questions", ["spans", "asked"])
def test_study_goes_on_where_it_stood(questions: str) -> None:
    config = CartridgeConfig(tokens_kept=8, questions=questions, answer_tokens=5, chunk_tokens=20)  # type: ignore[arg-type]
    teacher = load(random_model(), tokenizer=word_tokenizer()).read(TEXT, progress=False)
    whole = list(islice(study(teacher, TEXT, config), 12))
    rest = list(islice(study(teacher, TEXT, config, whole[:7]), 5))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(whole[7:], rest, strict=True))


def test_an_answer_is_what_the_model_says_with_the_document_read() -> None:
    model = random_model()
    span = load(model, tokenizer=word_tokenizer())
    teacher = span.read(TEXT, progress=False)
    config = CartridgeConfig(tokens_kept=8, answer_tokens=5, top_logits=7)
    talk = next(iter(study(teacher, TEXT, config)))
    n = len(talk.top_ids)
    with torch.no_grad():
        logits = model(torch.cat([teacher.run.ids, talk.ids])[None]).logits[0]
    top = torch.log_softmax(logits[-n - 1 : -1], dim=-1).topk(7)
    torch.testing.assert_close(talk.top_logprobs, top.values, atol=1e-4, rtol=1e-4)
    assert torch.equal(talk.top_ids, top.indices)
    assert torch.equal(talk.ids[-n:], top.indices[:, 0])
