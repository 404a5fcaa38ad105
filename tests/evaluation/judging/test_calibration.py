"""A judge's measured errors: judges whose errors are known beforehand, labelled pairs made and read."""

from __future__ import annotations

from pathlib import Path

import pytest

from longspan.evaluation.judging import (
    LabelledPair,
    calibration_table,
    error_rate,
    error_rate_of,
    judge_answer,
    labelled_facts,
    read_labelled,
)
from longspan.evaluation.judging.labelled import KINDS
from tests.evaluation.judging.fakes import ScriptedJudge, always, coin, shown

PAIRS = labelled_facts(200)


def test_always_yes_accepts_every_wrong_answer() -> None:
    found = error_rate(always('{"verdict": "correct"}'), PAIRS)
    assert (found.false_accept.count, found.false_accept.total) == (100, 100)
    # Wilson's lower bound at 100 of 100: 100 / (100 + 1.96^2).
    assert found.false_accept.interval == (pytest.approx(100 / 103.8415, abs=1e-4), 1.0)
    assert (found.false_reject.count, found.false_reject.total) == (0, 100)
    assert found.accuracy.value == 0.5
    assert (found.flips.count, found.flips.total) == (0, 200)
    assert (found.unparsable.count, found.unparsable.total) == (0, 400)
    assert {kind: share.value for kind, share in found.by_kind.items()} == {
        "right": 0.0, "paraphrase": 0.0, "wrong entity": 1.0, "vague": 1.0,
    }  # fmt: skip


def test_a_coin_is_right_half_of_the_time() -> None:
    found = error_rate(coin(), labelled_facts(1000))
    for share in (found.accuracy, found.false_accept, found.false_reject, found.flips):
        low, high = share.interval
        assert low < 0.5 < high and high - low < 0.1


def test_a_judge_that_compares_the_blocks_makes_the_errors_of_comparing() -> None:
    def same(prompt: str) -> str:
        return "correct" if shown(prompt, "reference") == shown(prompt, "answer") else "wrong"

    found = error_rate(ScriptedJudge(same), PAIRS)
    assert (found.false_accept.count, found.false_reject.count, found.accuracy.count) == (0, 50, 150)
    assert found.by_kind["paraphrase"].value == 1.0 and found.by_kind["right"].value == 0.0


def test_flips_are_verdicts_that_follow_the_order() -> None:
    def first_wins(prompt: str) -> str:
        return "correct" if prompt.index("<reference>") < prompt.index("<answer>") else "wrong"

    found = error_rate(ScriptedJudge(first_wins), PAIRS)
    assert found.flips.value == 1.0 and found.false_accept.value == 1.0
    once = ScriptedJudge(first_wins)
    assert error_rate(once, PAIRS, swap=False).flips.total == 0
    assert len(once.prompts) == len(PAIRS)


def test_illegible_replies_are_counted_and_left_out_of_the_rates() -> None:
    replies = iter(["correct", "?", "wrong", "correct"] * 2)
    found = error_rate(ScriptedJudge(lambda prompt: next(replies)), PAIRS[:4])
    # Labels: right, right, wrong, wrong. The second verdict is missing, in both orders.
    assert (found.unparsable.count, found.unparsable.total) == (2, 8)
    assert (found.accuracy.count, found.accuracy.total) == (2, 3)
    assert (found.false_accept.count, found.false_accept.total) == (1, 2)
    assert (found.false_reject.count, found.false_reject.total) == (0, 1)
    assert (found.flips.count, found.flips.total) == (0, 3)
    silent = error_rate(always("?"), PAIRS)
    assert silent.accuracy.value is None and silent.accuracy.interval == (0.0, 1.0)


def test_any_decision_can_be_measured_and_shown() -> None:
    found = error_rate_of("in it", PAIRS, lambda pair: pair.reference in pair.prediction)
    table = calibration_table([found, error_rate(always("?"), PAIRS)])
    head, rule, row, silent, end = table.split("\n")
    assert head.startswith("| judge | accuracy | false accept |") and "wrong entity: wrong" in head
    assert rule.count("---") == 10 and end == ""
    assert row.startswith("| in it | ") and silent.startswith("| scripted | – | – | – | – | 100% |")
    with pytest.raises(ValueError, match="no labelled pair"):
        error_rate_of("x", [], lambda pair: True)


def test_made_pairs_are_what_their_labels_say() -> None:
    pairs = labelled_facts(800, seed=3)
    assert len(pairs) == 800 and pairs[:200] == labelled_facts(200, seed=3) != labelled_facts(200, seed=4)
    assert {pair.kind for pair in pairs} == set(KINDS)
    assert len(labelled_facts(5)) == 5
    for pair in pairs:
        telling = {word for word in pair.reference.lower().split() if word not in ("a", "an", "the", "of")}
        said = set(pair.prediction.lower().replace(",", " ").replace(".", " ").split())
        assert pair.label is (pair.kind in ("right", "paraphrase"))
        if pair.kind == "right":
            assert pair.prediction == pair.reference
        elif pair.kind == "paraphrase":
            assert pair.prediction != pair.reference and telling <= said
        elif pair.kind == "vague":
            assert not telling & said and pair.question in pair.prediction
        else:
            assert pair.prediction.startswith(f"Not {pair.reference}, but ") or not telling <= said


def test_pairs_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(
        '{"question": "Who?", "reference": "Ada\u2028B", "prediction": "Ada", "label": true}\n\n'
        '{"question": "Who?", "reference": "Ada", "prediction": "Otto", "label": "Wrong", "kind": "name"}\n',
        encoding="utf-8",
    )
    assert read_labelled(file) == (
        LabelledPair(question="Who?", reference="Ada\u2028B", prediction="Ada", label=True),
        LabelledPair(question="Who?", reference="Ada", prediction="Otto", label=False, kind="name"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "holds no labelled pair"),
        ("{", "line 1 is not JSON"),
        ("\n[1]", "line 2 is no labelled pair"),
        ('{"question": "", "reference": "a", "prediction": "b", "label": 0.5}', "label as true or false"),
        ('{"question": "", "reference": "a", "prediction": 3, "label": 1}', "line 1 is no labelled pair"),
        ('{"question": "", "reference": "a", "prediction": "b"}', "line 1 is no labelled pair"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_labelled(file)
    with pytest.raises(ValueError, match="cannot read labelled pairs"):
        read_labelled(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="count=0"):
        labelled_facts(0)


def test_an_answer_is_judged_by_any_reference() -> None:
    judge = always("correct")
    assert judge_answer(judge, "Who?", ["Ada", "Ada Birch"], "") is True
    assert shown(judge.prompts[0], "reference") == "Ada\nAda Birch"
    assert shown(judge.prompts[0], "answer") == "(no answer)"
    with pytest.raises(ValueError, match="no reference answer"):
        judge_answer(judge, "Who?", [], "Ada")
