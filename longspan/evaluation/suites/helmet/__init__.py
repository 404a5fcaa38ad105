"""HELMET: recall, retrieved passages, re-ranking, citations and many examples, at 8K to 128K tokens.

Two worked examples come before each context, drawn as the official loader draws them. JSON values, short answers and labels
are compared as strings, rankings by NDCG at 10, cited texts by their short answers.

Paper: HELMET: How to Evaluate Long-Context Language Models Effectively and Thoroughly (Yen et al., 2024)
"""

from __future__ import annotations

from typing import Any

from longspan.evaluation.published import DataTask
from longspan.evaluation.suites.helmet.examples import ICL_TASKS
from longspan.evaluation.suites.helmet.passages import PASSAGE_TASKS

CARD: dict[str, Any] = {
    "name": "helmet",
    "title": "HELMET: How to Evaluate Long-Context Language Models Effectively and Thoroughly",
    "year": 2024,
    "version": 1,
    "metric": "substring match (json_kv, nq, triviaqa, hotpotqa, popqa), NDCG at 10 (msmarco), label match (the five sets of examples), "
    "short answers found (asqa, qampari)",
    "differs": [
        "instructions are in our own words; those of asqa and qampari are read from the official prompts where they are in the folder",
        "the questions are the official 100 (json_kv, msmarco, asqa, qampari) or a draw with the official seed on its own (the four "
        "sets of retrieved passages, where the official draw depends on what ran before); examples are the official ones, save for asqa "
        "and qampari, whose official examples depend on what ran before: here the first two",
        "an answer counts as a whole, where the official run of the question sets, rankings and labels stops it at its first line end",
        "citations are checked against the passages that hold the answers instead of by an entailment model",
        "sets of examples are read from files train and test with the columns of the hub; named labels are numbered in order of the "
        "alphabet, and nlu needs its official split as two files",
        "RULER's tasks of the recall group are in the suite ruler, long questions and summaries in infinitebench; neither is repeated here",
    ],
    "paper_id": None,
    "lengths": "8K, 16K, 32K, 64K and 128K tokens: a task for each",
    "needs": "the folders data/json_kv, kilt, msmarco, alce of the official data, prompts of its repository; icl/SET/train.* and test.*",
    "licence": "MIT (code); the data sets keep theirs",
    "citation": "Yen et al., 2024",
}

TASKS: dict[str, DataTask] = {**PASSAGE_TASKS, **ICL_TASKS}
