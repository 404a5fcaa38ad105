"""The checks of `metric_parity.py`: answers that benchmarks published, scored, beside the scores that they published."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.evaluation.metrics import (
    Metric,
    choice,
    code,
    grade,
    overlap,
    overlap_rouge,
    retrieval,
    text_numbers,
)
from longspan.evaluation.metrics import choice_labels as labels
from longspan.evaluation.metrics import ordering_steps as steps
from longspan.evaluation.metrics.text import string_match_all, string_match_part
from longspan.evaluation.published import read_rows

LONGBENCH: Mapping[str, Metric] = {
    **dict.fromkeys("narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique".split(), overlap.qa_f1),
    **dict.fromkeys("gov_report qmsum multi_news".split(), overlap.rouge),
    "trec": choice.classification_first_line,
    "triviaqa": overlap.qa_f1_first_line,
    "samsum": overlap.rouge_first_line,
    "passage_retrieval_en": retrieval.retrieval,
    "passage_count": retrieval.count,
    **dict.fromkeys(("lcc", "repobench-p"), code.code_similarity),
}

INFINITEBENCH: Mapping[str, tuple[str, Metric]] = {
    "passkey": ("Retrieve.PassKey", text_numbers.passkey),
    "number_string": ("Retrieve.Number", text_numbers.number_string),
    "kv_retrieval": ("Retrieve.KV", retrieval.kv_retrieval),
    "longbook_sum_eng": ("En.Sum", overlap_rouge.longbook_sum),
    "longbook_qa_eng": ("En.QA", overlap_rouge.longbook_qa_eng),
    "longbook_choice_eng": ("En.MC", choice.longbook_choice),
    "longdialogue_qa_eng": ("En.Dia", retrieval.longdialogue_qa),
    "longbook_qa_chn": ("Zh.QA", overlap_rouge.longbook_qa_chn),
    "code_debug": ("Code.Debug", code.code_debug),
    "code_run": ("Code.Run", text_numbers.code_run),
    "math_calc": ("Math.Calc", text_numbers.math_calc),
    "math_find": ("Math.Find", text_numbers.math_find),
}
INFINITEBENCH_MODELS = ("gpt4", "yarn-mistral", "kimi", "claude2", "yi-6b-200k", "yi-34b-200k", "chatglm3")

LEVAL: Mapping[str, tuple[float, Metric]] = {
    "tpo": (84.38, choice.exam_letter),
    "quality": (82.17, choice.exam_letter),
    "coursera": (75.58, choice.exam_letters),
    "gsm100": (96.00, text_numbers.gsm),
    "codeU": (25.55, code.code_u),
}

BABILONG = {"0k": 97, "1k": 85, "32k": 53, "128k": 1}

RULER_QUESTIONS = 293

# Name of the score in the examples on the benchmark's page, whose texts stay there: whether it cuts Chinese words.
LVEVAL_KEY = {"qa_f1_score": False, "qa_f1_score_with_gold_ans": False, "qa_f1_zh_score": True}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One published score and ours, in per cent or counted. equal: to the digits that were published."""

    benchmark: str
    task: str
    published: str
    ours: str
    equal: bool
    note: str = ""


def mean(metric: Metric, rows: Iterator[tuple[str, Sequence[str], Mapping[str, Any]]]) -> float:
    """Mean score, in per cent."""
    scores = [grade(metric, *row)["score"] for row in rows]
    return 100 * sum(scores) / len(scores)


def same(published: str, ours: float) -> bool:
    """Whether a score equals a published one to its digits, rounded or cut off; "< 5" asks for less than 5."""
    if published.startswith("<"):
        return ours < float(published.lstrip("< "))
    digits = len(published.partition(".")[2])
    cut = math.floor(ours * 10**digits + 1e-9) / 10**digits
    return float(published) in (round(ours, digits), cut)


NOTES = {
    "Zh.QA, yarn-mistral": "the published file has 189 answers, the task 175 questions",
    "Code.Debug, yarn-mistral": "the published file does not give the published score",
    "qa_f1_zh_score, metric case": "the official function gives 41.38 as well, with jieba 0.42.1",
}


def cell(benchmark: str, task: str, published: str, ours: float, note: str = "") -> Cell:
    return Cell(
        benchmark=benchmark,
        task=task,
        published=published,
        ours=f"{ours:.2f}",
        equal=same(published, ours),
        note=note or NOTES.get(task, ""),
    )


def longbench(folder: Path) -> Iterator[Cell]:
    predictions = folder / "LongLoRA" / "benchmarks" / "Pred_LongBench"
    published = json.loads((predictions / "result.json").read_text(encoding="utf-8"))
    for task, metric in LONGBENCH.items():
        rows = ((row["pred"], row["answers"], row) for row in read_rows(predictions / f"{task}.jsonl"))
        yield cell("LongBench", task, f"{published[task]:.2f}", mean(metric, rows))


def infinitebench(folder: Path) -> Iterator[Cell]:
    page = (folder / "InfiniteBench" / "README.md").read_text(encoding="utf-8").splitlines()
    table = {parts[1].strip(): parts[2:9] for parts in (line.split("|") for line in page) if len(parts) == 10}
    for file, (name, metric) in INFINITEBENCH.items():
        for model, published in zip(INFINITEBENCH_MODELS, table[name], strict=True):
            path = folder / "InfiniteBench" / "results" / model / f"preds_{file}.jsonl"
            if path.is_file():
                figure = published.strip().replace("%", "").replace("<5", "< 5")
                yield cell(
                    "InfiniteBench",
                    f"{name}, {model}",
                    figure,
                    mean(metric, _infinitebench_rows(path, model)),
                )


def _infinitebench_rows(path: Path, model: str) -> Iterator[tuple[str, Sequence[str], Mapping[str, Any]]]:
    for row in _infinitebench_objects(path):
        # One model's files hold both; its published scores are those against "label".
        gold = row.get("label", row.get("ground_truth"))
        while isinstance(gold, list) and gold and isinstance(gold[0], list):
            gold = gold[0]
        answer = row.get("prediction", row.get("pred", "NO PREDICTION"))
        references = [str(one) for one in gold] if isinstance(gold, list) else [str(gold)]
        yield answer, references, {"drop_first_number": model == "gpt4"}


def _infinitebench_objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """Objects of a file of which one has two on a line, and one ends in two letters that belong to nothing."""
    text, decoder, place = path.read_text(encoding="utf-8"), json.JSONDecoder(), 0
    while (place := text.find("{", place)) != -1:
        row, place = decoder.raw_decode(text, place)
        yield row


def leval(folder: Path) -> Iterator[Cell]:
    for task, (published, metric) in LEVAL.items():
        rows = list(
            read_rows(folder / "LEval" / "Predictions" / "exam_eval" / "gpt4-32k" / f"{task}.pred.jsonl")
        )
        key = next(name for name in rows[0] if name.endswith("_pred"))
        ours = mean(metric, ((row[key], [row["gt"]], {}) for row in rows))
        yield cell("L-Eval", f"{task}, GPT4-32k", f"{published:.2f}", ours)


def babilong(folder: Path) -> Iterator[Cell]:
    model = folder / "babilong" / "babilong_evals" / "microsoft" / "Phi-3-mini-128k-instruct"
    for length, published in BABILONG.items():
        path = model / f"qa1_{length}_instruction_yes_examples_yes_post_prompt_yes.csv"
        rows = [(row["output"], [row["target"]], {"task": "qa1", **row}) for row in read_rows(path)]
        fixed = mean(labels.babilong_fixed, iter(rows))
        note = f"labels as whole words: {fixed:.2f}"
        yield cell(
            "BABILong", f"qa1 {length}, Phi-3-mini", str(published), mean(labels.babilong, iter(rows)), note
        )


def lveval(folder: Path) -> Iterator[Cell]:
    page = (folder / "LVEval" / "info" / "error_cases_and_metric_cases.md").read_text(encoding="utf-8")
    for block in page.split("```json")[1:]:
        text = block.split("```")[0].strip()
        for key, chinese in LVEVAL_KEY.items():
            if f'"{key}"' not in text:
                continue
            row = json.loads(text)
            metric = overlap.qa_f1_zh if chinese else overlap.qa_f1
            ours = grade(metric, row["pred"], [answer.replace("*", "") for answer in row["answers"]], {})[
                "score"
            ]
            yield cell("LV-Eval", f"{key}, metric case", f"{100 * row[key]:.6f}", 100 * ours)


def longproc(folder: Path) -> Iterator[Cell]:
    data = folder / "LongProc" / "data"
    valid = total = 0
    for path in sorted((data / "countdown").glob("*.json")):
        for row in read_rows(path):
            answer = f"<Solution>\n{row['solution_text']}\n</Solution>"
            valid += int(grade(steps.countdown, answer, [], row)["score"])
            total += 1
    yield counted("LongProc", "countdown, demonstrations solve it", total, valid)
    for name, field, metric, wrap in (
        ("path_traversal", "answer_nl", steps.path_traversal, "<Route>\n{}\n</Route>"),
        ("tom_tracking", "solution", steps.tom_tracking, "{}"),
        ("html_to_tsv", "gt", steps.html_to_tsv, "```tsv\n{}\n```"),
    ):
        rows: list[Mapping[str, Any]] = [
            row for path in sorted((data / name).glob(f"{name}_*.json")) for row in read_rows(path)
        ]
        right = sum(grade(metric, wrap.format(row[field]), [row[field]], {})["score"] == 1 for row in rows)
        yield counted("LongProc", f"{name}, gold scores 1", len(rows), right)


def needlechain(folder: Path) -> Iterator[Cell]:
    rows = [
        row for path in sorted((folder / "NeedleChain" / "data").glob("*.jsonl")) for row in read_rows(path)
    ]
    for metric in (text_numbers.needle_chain, text_numbers.needle_chain_fixed):
        gold = [
            (row[f"{order}_single_val"], row[f"{order}_total_val"])
            for row in rows
            for order in ("forward", "backward", "chaotic")
        ]
        right = sum(
            min(grade(metric, f"## Answer: {value}", [value], {})["score"] for value in pair) == 1
            for pair in gold
        )
        yield counted("NeedleChain", f"last and total, gold scores 1, {metric.__name__}", len(gold), right)


def counted(benchmark: str, task: str, total: int, right: int) -> Cell:
    return Cell(benchmark=benchmark, task=task, published=str(total), ours=str(right), equal=right == total)


def ruler(folder: Path) -> Iterator[Cell]:
    articles = json.loads((folder / "squad-v2-dev.json").read_text(encoding="utf-8"))["data"]
    questions = [
        question
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        if not question["is_impossible"]
    ]
    (path,) = (folder / "RULER").rglob("4096/pred/submission.csv")
    with open(path, encoding="utf-8", newline="") as stream:
        answers = [row["Prediction"] for row in csv.DictReader(stream) if row["Task"] == "qa_1"]
    rows: list[tuple[str, list[str], Mapping[str, Any]]] = [
        (answer, [gold["text"] for gold in question["answers"]], {})
        for answer, question in zip(answers[:RULER_QUESTIONS], questions, strict=False)
    ]
    yield cell(
        "RULER", f"qa_1, first {len(rows)}, Phi-3.5-mini", "80.20", mean(string_match_part, iter(rows))
    )
    note = "lm-evaluation-harness"
    yield cell(
        "RULER", "the same by the averaging formula", "71.30", mean(string_match_all, iter(rows)), note
    )


CHECKS: Mapping[str, Callable[[Path], Iterator[Cell]]] = {
    "LongLoRA": longbench,
    "InfiniteBench": infinitebench,
    "LEval": leval,
    "babilong": babilong,
    "LVEval": lveval,
    "LongProc": longproc,
    "NeedleChain": needlechain,
    "RULER": ruler,
}
