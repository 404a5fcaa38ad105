"""Questions of a document's own words, and the teacher's answers with their distributions."""

from __future__ import annotations

import random

import pytest
import torch

from longspan.engine.api import load
from longspan.engine.context import Context
from longspan.training.cartridges.config import CartridgeConfig
from longspan.training.cartridges.self_study import (
    KEY_QUESTIONS,
    NAME_WORDS,
    NUMBER_WORDS,
    OTHER_WORDS,
    PROBES,
    Conversation,
    answer,
    choose,
    count_answers,
    is_about,
    span_question,
    spans,
    split_document,
    study,
)
from tests.models import random_ids, random_model, word_tokenizer, words

SENTENCE = "The beekeeper of Marlton keeps a plain almanac in the granary."
TEXT = words(random_ids(90))


def had(config: CartridgeConfig, teacher: Context, count: int) -> list[Conversation]:
    found: list[Conversation] = []
    for batch in study(teacher, TEXT, config):
        found += batch
        if len(found) >= count:
            return found[:count]
    raise AssertionError("study never ends")


def test_a_question_has_words_of_its_sentence_only() -> None:
    own = {word.strip(".").lower() for word in SENTENCE.split()}
    asked = " ".join((*NUMBER_WORDS, *NAME_WORDS, *OTHER_WORDS, *KEY_QUESTIONS)).lower().split()
    known = own | {word.strip("?") for word in asked}
    for seed in range(200):
        question = span_question(SENTENCE, random.Random(seed), seed % 9 if seed % 2 else None)
        assert {word.strip("?").lower() for word in question.split()} <= known
        assert len(question.split()) >= 1


def test_all_names_numbers_and_phrases_are_asked_for() -> None:
    """Names and numbers are whole; a choice by chance would ask for the same one twice."""
    words_of = "In Elmmoor, Jerome Winslow paid 9205 crowns".split()
    named, others = (
        [" ".join(words_of[a:b]).strip(",") for a, b in x] for x in spans(words_of, random.Random(0))
    )
    assert sorted(named) == ["9205", "Elmmoor", "Jerome Winslow"]
    assert {"paid", "crowns"} == set(others)
    sentence = " ".join(words_of)
    asked = [span_question(sentence, random.Random(n), 2 * n, seed=3) for n in range(3)]
    gone = [
        {w for w in words_of if w.strip(",").lower() not in question.strip("?").lower().split()}
        for question in asked
    ]
    for span in named:
        assert any(set(span.split()) <= {w.strip(",") for w in missing} for missing in gone), span


def test_a_long_sentence_is_asked_about_near_what_is_missing() -> None:
    long = (
        " ".join(f"word{i}" for i in range(60)) + " Jerome Winslow " + " ".join(f"more{i}" for i in range(60))
    )
    for seed in range(40):
        question = span_question(long, random.Random(seed), 0, seed=seed)
        assert len(question.split()) <= 18


def test_sentences_take_turns_and_then_those_with_few_answers_are_preferred() -> None:
    hits = [0, 2, 0, 1]
    rng = random.Random(0)
    turns = [choose(n, hits, rng) for n in range(PROBES * 4)]
    for turn in range(PROBES):
        assert sorted(turns[4 * turn : 4 * turn + 4]) == [0, 1, 2, 3]
    assert turns != [0, 1, 2, 3] * PROBES
    later = [choose(PROBES * 4 + n, hits, rng) for n in range(400)]
    assert later.count(3) > later.count(1) > later.count(0) > 0


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
    config = CartridgeConfig(
        tokens_kept=8,
        questions=questions,
        answer_tokens=5,
        chunk_tokens=20,
        study_rows=4,  # type: ignore[arg-type]
    )
    teacher = load(random_model(), tokenizer=word_tokenizer()).read(TEXT, progress=False)
    whole = had(config, teacher, 12)
    rest = next(study(teacher, TEXT, config, whole[:8]))
    for a, b in zip(whole[8:], rest, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.top_logprobs, b.top_logprobs)
        assert (a.sentence, a.answered) == (b.sentence, b.answered)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_answers_are_what_the_model_says_with_the_document_read(family: str) -> None:
    """Questions of several lengths side by side, one whose answer ends at once: each as if it were alone."""
    model = random_model(family)
    span = load(model, tokenizer=word_tokenizer())
    teacher = span.read(TEXT, progress=False)
    config = CartridgeConfig(tokens_kept=8, answer_tokens=5, top_logits=7)
    asked = [random_ids(n, seed=n) for n in (3, 11, 1, 6)]
    with torch.no_grad():
        stop = int(model(torch.cat([teacher.run.ids, asked[1]])[None]).logits[0, -1].argmax())
    model.generation_config.eos_token_id = stop
    found = answer(teacher, asked, config)
    assert len(found[1][1]) == 1
    for question, (ids, top_ids, top_logprobs) in zip(asked, found, strict=True):
        n = len(top_ids)
        assert n == 5 or int(ids[-1]) in (stop, span.tokenizer.eos_token_id)
        assert torch.equal(ids[: len(question)], question) and len(ids) == len(question) + n
        with torch.no_grad():
            logits = model(torch.cat([teacher.run.ids, ids])[None]).logits[0]
        top = torch.log_softmax(logits[-n - 1 : -1], dim=-1).topk(7)
        torch.testing.assert_close(top_logprobs, top.values, atol=1e-4, rtol=1e-4)
        assert torch.equal(top_ids, top.indices)
        assert torch.equal(ids[-n:], top.indices[:, 0])


def test_answers_are_counted_for_each_sentence() -> None:
    none = torch.zeros(1, 1)
    talks = [
        Conversation(ids=none, top_ids=none, top_logprobs=none, sentence=n, answered=ok)
        for n, ok in ((0, True), (2, False), (0, True), (1, True))
    ]
    assert count_answers(talks, 4) == [2, 1, 0, 0]
