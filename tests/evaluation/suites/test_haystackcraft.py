"""HaystackCraft: a reader of the articles answers, rankings by hand, and published questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longspan.evaluation.haystacks import count_tokens
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.published import DataMissing
from longspan.evaluation.registry import find_task
from longspan.evaluation.sample import score
from longspan.evaluation.suites.haystackcraft import answer_f1
from longspan.evaluation.suites.haystackcraft.retrieval import EMBEDDER_VARIABLE, Corpus, fuse
from longspan.evaluation.suites.haystackcraft.world import world_of
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer

DOCUMENTS = (
    "The cat sat on the mat near the cat door.",
    "A dog slept on the mat in the hall.",
    "Ships sail from the harbour at dawn.",
    "A harbour is where ships and boats lie.",
    "Boats and ships leave the harbour for the sea.",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(task: str, tokenizer: Any, seed: int, length: int = 2048) -> Sample:
    made: Sample = find_task(f"haystackcraft/{task}").exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )
    return made


def solve(context: str, question: str) -> str:
    """What the articles say: the founder of the society, then the founder's article."""
    society = re.search(r"founder of the (.+? Society)", question)
    assert society is not None
    founder = re.search(rf"The {society[1]} was founded in \d+ by (.+?)\.", context)
    assert founder is not None
    article = context.split(f"Article: {founder[1]}\n")[1].split("\n")[0]
    pattern = {
        "born": r"was born in (.+?)\.",
        "treasure": r"At home \w+ kept (.+?) in the",
        "ship": r"travelled on the ship (.+?)\.",
    }[next(word for word in ("treasure", "ship", "born") if word in question.split("founder")[0] + "born")]
    found = re.search(pattern, article)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("task", ["sparse_ranked", "dense_random", "hybrid_ranked", "refined_1", "refined_3"])
def test_a_reader_of_the_articles_answers(task: str, tokenizer: Any) -> None:
    for seed in range(8):
        sample = build(task, tokenizer, seed)
        assert score(f" {solve(sample.context, sample.question)}.", sample, answer_f1) == 1.0


def test_ranked_articles_follow_the_ranking_and_random_ones_do_not(tokenizer: Any) -> None:
    sample = build("sparse_ranked", tokenizer, 1)
    asked = sample.question.removeprefix("Question: ").removesuffix(" Answer with the words asked for only.")
    world = world_of(1024)
    titles = [re.findall(r"Article: (.+)", text)[0] for text in world.corpus.documents]
    expected = [titles[number] for number in world.corpus.rank(asked, "sparse")]
    shown = re.findall(r"Article: (.+)", sample.context)
    places = [expected.index(title) for title in shown]
    assert places == sorted(places)
    assert places[:10] == list(range(10))
    mixed = re.findall(r"Article: (.+)", build("sparse_random", tokenizer, 1).context)
    assert [expected.index(title) for title in mixed] != sorted(expected.index(title) for title in mixed)


def test_earlier_rounds_leave_wrong_findings_and_their_articles(tokenizer: Any) -> None:
    for seed in range(4):
        sample = build("refined_2", tokenizer, seed, length=4096)
        wrong = re.findall(r"Round \d: The founder seems to be (.+?), who", sample.context)
        right = re.search(r"Article: (.+)", sample.evidence[1])
        assert right is not None and len(set(wrong)) == 2 and right[1] not in wrong
        assert all(f"Article: {name}\n" in sample.context for name in wrong)
        assert all(
            solve(sample.context, sample.question) not in line
            for line in re.findall(r"Round \d: .*", sample.context)
        )


def test_bm25_counts_rare_words_and_short_documents() -> None:
    corpus = Corpus(DOCUMENTS)
    assert corpus.rank("cat", "sparse")[0] == 0
    assert corpus.rank("harbour ships sail", "sparse")[0] == 2
    assert corpus.rank("nothing known", "sparse") == [0, 1, 2, 3, 4]


def test_latent_axes_are_those_of_the_exact_decomposition() -> None:
    from longspan.evaluation.suites.haystackcraft.retrieval import _singular_axes

    rng = np.random.default_rng(1)
    table = (rng.standard_normal((300, 6)) @ rng.standard_normal((6, 90))).astype(np.float32)
    axes = _singular_axes(table)[:, :6]
    exact = np.linalg.svd(table, full_matrices=False)[2][:6].T
    assert np.abs(axes @ axes.T - exact @ exact.T).max() < 1e-3


def test_dense_finds_what_shares_no_word_with_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EMBEDDER_VARIABLE, raising=False)
    monkeypatch.setattr("longspan.evaluation.suites.haystackcraft.retrieval.DIMENSIONS", 2)
    sea, garden = ("sail ships harbour boats anchor".split(), "rose hedge soil seed spade".split())
    texts = [" ".join(word for word in words if word != left) for words in (sea, garden) for left in words]
    corpus = Corpus(texts)
    assert "sail" not in texts[0]
    assert set(corpus.rank("sail", "dense")[:5]) == {0, 1, 2, 3, 4}
    assert set(corpus.rank("spade", "dense")[:5]) == {5, 6, 7, 8, 9}


def test_an_embedder_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMBEDDER_VARIABLE, "some-model")
    monkeypatch.setattr("longspan.evaluation.suites.haystackcraft.retrieval.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="sentence-transformers is not installed"):
        Corpus(DOCUMENTS).rank("cat", "dense")
    with pytest.raises(DataMissing, match=r"longspan\[retrieval\]"):
        Corpus(DOCUMENTS).rank("cat", "sparse")


def test_fusion_by_hand() -> None:
    # 1/61 + 1/63, 1/62 + 1/62, 1/63 + 1/61: the first and the last tie, the middle one is just below
    assert fuse([[0, 1, 2], [2, 1, 0]]) == [0, 2, 1]
    assert fuse([[3, 4], [3, 4]]) == [3, 4]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("The correct answer is (a yellow shovel).", 1.0),
        ('Well. The correct answer is: "yellow shovel"', 1.0),
        (" yellow shovel. It was kept at home.", 1.0),
        ("The correct answer is a shovel.", 2 / 3),
        ("The correct answer is a brass key.", 0.0),
        ("", 0.0),
    ],
)
def test_the_answer_is_read_after_the_phrase(said: str, expected: float) -> None:
    assert answer_f1(said, ["a yellow shovel"], {}) == pytest.approx(expected)


FILES = {
    "musique": ("musique_ans_v1.0_dev.jsonl", "musique-200.json"),
    "hotpotqa": ("hotpot_dev_distractor_v1.json", "hotpotqa-200.json"),
    "squad": ("dev-v2.0.json", "squad-v2-dev-half.json"),
}


@pytest.mark.parametrize("name", FILES)
def test_published_questions(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    published, local = FILES[name]
    (tmp_path / "haystackcraft").mkdir()
    (tmp_path / "haystackcraft" / published).symlink_to(shared_data / "qa" / local)
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    for seed in range(6):
        sample = build(f"{name}_sparse_random", tokenizer, seed, length=8192)
        assert all(sample.context.count(piece) == 1 for piece in sample.evidence)
        assert len(sample.evidence) == 1 if name == "squad" else len(sample.evidence) > 1
        assert sample.context.count("Article: ") > 10
        used = count_tokens(tokenizer, sample.context + "\n\n" + sample.question)
        assert 0.97 * 8192 - 48 < used <= 8192 - 48
        assert score(sample.answer, sample, answer_f1) == 1.0
    if name == "squad":
        held = sample.evidence[0].lower()
        assert any(reference.lower() in held for reference in sample.references)
    with pytest.raises(ValueError, match="fewer than fill"):
        build(f"{name}_sparse_random", tokenizer, 0, length=2_000_000)
