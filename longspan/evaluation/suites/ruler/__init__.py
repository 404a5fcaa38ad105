"""RULER: needles, variable tracking, counting and questions over documents, at any length.

Needles are "One of the special magic numbers for <key> is: <value>."; the haystack is prose, five noise sentences, or
needle lines only (multikey_2 and multikey_3). Scored by the share of the reference strings that stand in the answer; the
questions over documents by whether any accepted answer does.

Paper: RULER: What's the Real Context Size of Your Long-Context Language Models? (Hsieh et al., 2024)
"""

from typing import Any

from longspan.evaluation.metrics.text import string_match_part
from longspan.evaluation.suites.ruler.counting import (
    common_words,
    common_words_with_example,
    frequent_words,
)
from longspan.evaluation.suites.ruler.documents import qa_1, qa_2
from longspan.evaluation.suites.ruler.needles import (
    MAKERS,
    distinct,
    join_words,
    magic_needle,
    niah,
    random_number,
    random_uuid,
    random_word,
    variable_tracking,
    variable_tracking_with_example,
)
from longspan.evaluation.task import Task

__all__ = [
    "CARD",
    "MAKERS",
    "TASKS",
    "common_words",
    "distinct",
    "frequent_words",
    "join_words",
    "magic_needle",
    "niah",
    "random_number",
    "random_uuid",
    "random_word",
    "variable_tracking",
]

CARD: dict[str, Any] = {
    "name": "ruler",
    "title": "RULER: What's the Real Context Size of Your Long-Context Language Models?",
    "year": 2024,
    "version": 2,
    "metric": "share of the reference strings found in the answer, letter case ignored (qa: whether any is); mean over samples",
    "differs": [
        "the prose haystack is the caller's text, not Paul Graham's essays",
        "needles stand at any sentence end; RULER draws from 40 depths",
        "the last needle line of multikey_2 and multikey_3 is cut where a whole one does not fit",
        "the solved example of vt takes an eighth of the room where that is less than RULER's 500 tokens, and is new in "
        "every sample; RULER makes one and renames its variables",
        "the solved example of cwe has words of its own; RULER's may share some with the list",
        "cwe goes on with plurals, adverbs and other forms beyond the about 8,000 words of wonderwords, where RULER changes "
        "to a list of English words",
        "in fwe under about 300 tokens, counts from the fifth on stay below the fourth, so that the answer is the only one",
        "qa gives the documents a HotpotQA question needs, then its distractors, then random ones; RULER all ten at once, "
        "which is the same from about 2,048 tokens on",
        "qa passes over questions whose answer has 32 tokens or whose documents do not fit; in qa_1 the paragraph takes at "
        "most an eighth of the room, so that it can stand at any depth",
        "the last random document of qa is cut where that fills the room",
        "the chat template's own `Answer:` stands where RULER writes it before the answer prefix",
        "an empty line stands between context and question, where RULER has a line end",
    ],
    "paper_id": 206,
    "lengths": "any; cwe, vt and qa from 1K tokens, cwe up to about 800K",
    "needs": "wonderwords; qa_1 the SQuAD v2 dev file, qa_2 the HotpotQA distractor dev file",
    "licence": "generated here; SQuAD and HotpotQA CC BY-SA 4.0",
}

RETRIEVAL: dict[str, Any] = {"ability": "retrieval", "diffusion": "low", "scope": "low"}
COUNTING: dict[str, Any] = {
    "ability": "aggregation",
    "diffusion": "high",
    "scope": "high",
    "answers": "derived",
}
QUESTIONS: dict[str, Any] = {
    "scope": "low",
    "metric": string_match_part,
    "haystack": "own",
    "answers": "derived",
}

TASKS: dict[str, Task] = {
    "niah_single_1": Task(make=niah(), haystack="noise", **RETRIEVAL),
    "niah_single_2": Task(make=niah(), **RETRIEVAL),
    "niah_single_3": Task(make=niah(value="uuids"), **RETRIEVAL),
    "niah_multikey_1": Task(make=niah(keys=4), **RETRIEVAL),
    "niah_multikey_2": Task(make=niah(lines=True), haystack="own", **RETRIEVAL),
    "niah_multikey_3": Task(make=niah(key="uuids", value="uuids", lines=True), haystack="own", **RETRIEVAL),
    "niah_multivalue": Task(make=niah(values=4), **RETRIEVAL),
    "niah_multiquery": Task(make=niah(keys=4, queries=4), **RETRIEVAL),
    "vt": Task(
        make=variable_tracking_with_example,
        haystack="noise",
        ability="tracing",
        diffusion="high",
        scope="low",
    ),
    "cwe": Task(make=common_words_with_example, haystack="own", **COUNTING),
    "fwe": Task(make=frequent_words, haystack="own", **COUNTING),
    "qa_1": Task(make=qa_1, ability="question answering", diffusion="low", places=True, **QUESTIONS),
    # One answer in twelve is yes or no.
    "qa_2": Task(make=qa_2, ability="multi-hop", diffusion="high", chance=0.005, **QUESTIONS),
}
