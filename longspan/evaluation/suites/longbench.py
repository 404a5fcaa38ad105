"""LongBench: 21 tasks over real texts of 5K to 15K words, in English, Chinese and code.

Questions on one text and on several, summaries, few-shot learning, synthetic retrieval and counting, and the next line of
code. LongBench-E, `<task>_e`, has 13 of the tasks with as many texts below 4K words, from 4K to 8K, and longer.

Paper: LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding (Bai et al., 2023)

Scored by token F1, Rouge-L, accuracy of classes and numbers, and likeness of code lines, as published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from longspan.evaluation.metrics import Metric
from longspan.evaluation.metrics.by_group import by_length, classification_first_line_fixed
from longspan.evaluation.metrics.choice import classification_first_line
from longspan.evaluation.metrics.code import code_similarity
from longspan.evaluation.metrics.overlap import (
    qa_f1,
    qa_f1_first_line,
    qa_f1_zh,
    rouge,
    rouge_first_line,
    rouge_zh,
)
from longspan.evaluation.metrics.retrieval import count, retrieval, retrieval_zh
from longspan.evaluation.published import DataTask, Question, Source
from longspan.evaluation.suites._templates import posed, published_templates
from longspan.evaluation.task import Level

CARD: dict[str, Any] = {
    "name": "longbench",
    "title": "LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding",
    "year": 2023,
    "version": 1,
    "metric": "token F1, Rouge-L, classification accuracy, counted numbers or likeness of code, by task; mean over questions",
    "differs": [
        "without dataset2prompt.json the instructions are worded anew; with it in the folder they are the published ones",
        "the middle of the text is cut, not of the whole prompt, so that instruction and question always stay",
        "an empty line stands between the text and what follows it, also where the published template has a line end",
        "the few-shot and code tasks get the chat template too, which the original leaves out there",
        "samsum goes on after a line end; its score looks at the first line only, as the original's does",
        "code is compared by difflib, which the published numbers were made with; python-Levenshtein gives about two points more",
        "trec_fixed and lsht_fixed look at every class named; the official scorer passes over some",
        "tasks <name>_e give LongBench-E's three columns as parts of the score; that score is the mean over all questions",
    ],
    "paper_id": 17,
    "lengths": "any; texts of 1K to 40K words as published, their middle cut where they are longer than asked for",
    "needs": "data/<task>.jsonl of the hub's data.zip, for LongBench-E data/<task>_e.jsonl; Chinese tasks need jieba",
    "licence": "MIT for the collection; its sources keep their own",
    "citation": "Bai et al., LongBench: A Bilingual, Multitask Benchmark for Long Context Understanding, ACL 2024",
}

SOURCE = Source(
    hub="THUDM/LongBench",
    licence=CARD["licence"],
    citation=CARD["citation"],
    url="https://github.com/THUDM/LongBench",
)

PASSAGES = (
    "Below are several passages. Use them to answer the question that follows them, with the answer alone.\n\n{context}\n\n"
    "Answer from the passages above. Write the answer alone, without any other word.\n\nQuestion: {input}"
)
PROMPTS: Mapping[str, str] = {
    "narrativeqa": "Read this story, a novel or the script of a film, for a question about it.\n\n{context}\n\nAnswer the "
    "question about the story in as few words as you can, a single phrase if possible, and explain nothing.\n\nQuestion: {input}",
    "qasper": "Read this scientific article for a question about it.\n\n{context}\n\nAnswer the question from the article in a "
    'single phrase or sentence. If the article does not hold the answer, write "unanswerable"; if it is a yes/no question, '
    'write "yes", "no" or "unanswerable". Explain nothing.\n\nQuestion: {input}',
    "multifieldqa_en": "Read this text for a question about it.\n\n{context}\n\nAnswer the question from the text, briefly, "
    "with the answer alone.\n\nQuestion: {input}",
    "multifieldqa_zh": "请先读完下面这段文字。\n\n{context}\n\n请根据这段文字，用中文简短作答，只写答案本身。\n\n问题：{input}",
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), PASSAGES),
    "dureader": "请先读完下面的文章。\n\n{context}\n\n请根据这些文章回答问题。\n\n问题：{input}",
    "gov_report": "Here is a report of a government agency.\n\n{context}\n\nSum up this report on one page.",
    "qmsum": "Here is the transcript of a meeting.\n\n{context}\n\nDo what this query about the meeting asks, in one or a few "
    "sentences.\n\nQuery: {input}",
    "multi_news": "Here are several news articles.\n\n{context}\n\nSum up all of them together on one page.",
    "vcsum": "以下是一次会议的记录。\n\n{context}\n\n请总结这次会议的内容。",
    "trec": "Say of which type the last question is. First come questions with their types.\n\n{context}\n\n{input}",
    "triviaqa": "Answer the last question from its passage, with the answer alone. First come solved examples.\n\n{context}"
    "\n\n{input}",
    "samsum": "Sum up the last dialogue in a few short sentences. First come examples.\n\n{context}\n\n{input}",
    "lsht": "请说出最后一篇新闻属于哪一类。前面是一些已分好类的例子。\n\n{context}\n\n{input}",
    "passage_count": "Below are paragraphs of Wikipedia, some of which are there more than once.\n\n{context}\n\nHow many "
    "different paragraphs are there, each counted once however often it is repeated? Answer with the number alone, such as 7.",
    "passage_retrieval_en": "Below are 30 paragraphs of Wikipedia.\n\n{context}\n\nThis is a summary of one of them:\n\n{input}"
    '\n\nOf which paragraph? Answer in the form "Paragraph 1".',
    "passage_retrieval_zh": "以下是若干段落。\n\n{context}\n\n下面是其中一段的摘要：\n\n{input}\n\n"
    '这是哪一段的摘要？请按"段落1"的格式作答。',
    "lcc": "Complete this code by its next line.\n{context}\nNext line of code:",
    "repobench-p": "Complete this code by its next line.\n{context}{input}\nNext line of code:",
}
"""Own wording of the published instructions."""

PREFIXES: Mapping[str, str] = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "qmsum"), "Answer:"),
    **dict.fromkeys(("multifieldqa_zh", "dureader"), "回答："),
    **dict.fromkeys(("gov_report", "multi_news"), "Summary:"),
    "vcsum": "会议总结：",
    "passage_count": "The final answer is:",
    "passage_retrieval_en": "The answer is:",
    "passage_retrieval_zh": "答案是：",
}  # fmt: skip
"""Start of the answer; the published templates carry theirs themselves."""

PARAGRAPHS: Mapping[str, str] = {
    "passage_retrieval_en": r"^{answer}: .*?(?=\n+Paragraph \d+: |\Z)",
    "passage_retrieval_zh": r"^{answer}：.*?(?=\n+段落\d+：|\Z)",
}

EXTENDED = (
    "qasper multifieldqa_en hotpotqa 2wikimqa gov_report multi_news trec triviaqa samsum passage_count passage_retrieval_en "
    "lcc repobench-p"
).split()


def parse(name: str, row: Mapping[str, Any]) -> Iterable[Question]:
    """The question of a row: input, context, answers, length, dataset, language, all_classes, _id.

    Args:
        name: of the task, without "_e".
        row: as published.
    """
    published = published_templates("longbench", "dataset2prompt.json", SOURCE).get(name)
    context, question = posed(published or PROMPTS[name], row["context"], input=row["input"])
    references = tuple(map(str, row["answers"]))
    if not references:
        raise ValueError("`answers` is empty")
    evidence = tuple[str, ...]()
    if name in PARAGRAPHS:
        pattern = PARAGRAPHS[name].replace("{answer}", re.escape(references[0]))
        found = re.search(pattern, row["context"], re.MULTILINE | re.DOTALL)
        evidence = () if found is None else (found[0],)
    yield Question(
        context=context,
        question=question,
        answer_prefix="" if published else PREFIXES.get(name, ""),
        references=references,
        evidence=evidence,
        details={
            "all_classes": row["all_classes"],
            "length": row["length"],
            "language": row["language"],
            "id": row["_id"],
            "prompt": "published" if published else "own wording",
        },
    )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a task measures, in words of `Labels`; chance for an answerer who knows the classes or numbers to choose from."""

    ability: str
    diffusion: Level
    scope: Level
    metric: Metric
    max_new_tokens: int
    chance: float = 0.0


ONE_TEXT = Kind(ability="question answering", diffusion="low", scope="low", metric=qa_f1, max_new_tokens=128)
SEVERAL_TEXTS = Kind(ability="multi-hop", diffusion="high", scope="low", metric=qa_f1, max_new_tokens=32)
SUMMARY = Kind(ability="summarisation", diffusion="high", scope="high", metric=rouge, max_new_tokens=512)
EXAMPLES = Kind(
    ability="few-shot learning",
    diffusion="low",
    scope="high",
    metric=classification_first_line,
    max_new_tokens=64,
)
PASSAGE = Kind(
    ability="retrieval", diffusion="low", scope="low", metric=retrieval, max_new_tokens=32, chance=1 / 30
)
CODE = Kind(
    ability="code completion", diffusion="high", scope="low", metric=code_similarity, max_new_tokens=64
)
KINDS: Mapping[str, Kind] = {
    "narrativeqa": ONE_TEXT,
    "qasper": ONE_TEXT,
    "multifieldqa_en": replace(ONE_TEXT, max_new_tokens=64),
    "multifieldqa_zh": replace(ONE_TEXT, metric=qa_f1_zh, max_new_tokens=64),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), SEVERAL_TEXTS),
    "dureader": replace(SEVERAL_TEXTS, ability="question answering", metric=rouge_zh, max_new_tokens=128),
    "gov_report": SUMMARY,
    "qmsum": replace(SUMMARY, scope="low"),
    "multi_news": SUMMARY,
    "vcsum": replace(SUMMARY, metric=rouge_zh),
    "trec": replace(EXAMPLES, chance=1 / 50),
    "triviaqa": replace(EXAMPLES, scope="low", metric=qa_f1_first_line, max_new_tokens=32),
    "samsum": replace(EXAMPLES, metric=rouge_first_line, max_new_tokens=128),
    "lsht": replace(EXAMPLES, chance=1 / 24),
    "passage_count": replace(PASSAGE, ability="aggregation", scope="high", metric=count, chance=0.0),
    "passage_retrieval_en": PASSAGE,
    "passage_retrieval_zh": replace(PASSAGE, metric=retrieval_zh),
    "lcc": CODE,
    "repobench-p": CODE,
}


def _task(name: str, kind: Kind, *, extended: bool = False) -> DataTask:
    file = f"{name}_e" if extended else name
    return DataTask(
        suite="longbench",
        source=SOURCE,
        file=f"data/{file}.jsonl",
        subset=file,
        parse=partial(parse, name),
        max_new_tokens=kind.max_new_tokens,
        ability=kind.ability,
        diffusion=kind.diffusion,
        scope=kind.scope,
        metric=by_length(kind.metric) if extended else kind.metric,
        chance=kind.chance,
        answers="derived",
    )


TASKS: dict[str, DataTask] = {
    **{name: _task(name, kind) for name, kind in KINDS.items()},
    **{
        f"{name}_fixed": _task(name, replace(KINDS[name], metric=classification_first_line_fixed))
        for name in ("trec", "lsht")
    },
    **{f"{name}_e": _task(name, KINDS[name], extended=True) for name in EXTENDED},
}
