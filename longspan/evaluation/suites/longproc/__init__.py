"""LongProc: facts spread over the text are put together, by a procedure, into a long and exact output.

Paper: LongProc: Benchmarking Long-Context Language Models on Long Procedural Generation (Ye et al., 2025)
Six procedures, each checked by rules: a countdown search, a route, beliefs after every step, a table from a page, code from
pseudo-code, a travel plan. The score is the official accuracy (F1 of rows for tables); partial scores come with it.
"""

from __future__ import annotations

from typing import Any

from longspan.evaluation.metrics.ordering_steps import html_to_tsv as table_f1
from longspan.evaluation.metrics.ordering_steps import tom_tracking as belief_score
from longspan.evaluation.suites.longproc.beliefs import tom_tracking
from longspan.evaluation.suites.longproc.countdown import countdown, countdown_score
from longspan.evaluation.suites.longproc.pages import html_to_tsv
from longspan.evaluation.suites.longproc.programs import code_lines, pseudo_to_code
from longspan.evaluation.suites.longproc.routes import (
    path_score,
    path_traversal,
    travel_planning,
    travel_score,
)
from longspan.evaluation.task import Task

CARD: dict[str, Any] = {
    "name": "longproc",
    "title": "LongProc: Benchmarking Long-Context Language Models on Long Procedural Generation",
    "year": 2025,
    "version": 1,
    "metric": "accuracy of the whole output by rules (html_to_tsv: F1 of rows); partial scores beside it; mean over samples",
    "differs": [
        "all items are made here; officially saved web pages, SPoC programs and Natural Plan trips",
        "outputs grow with the length asked for, up to about 8K tokens; officially 0.5K, 2K and 8K",
        "the item stands among others like it (problems, cities, stories, lines of a page, programs, flights), which fill the "
        "length; officially it follows worked examples",
        "one worked example or a stated form in place of several examples; the same tags, shorter lines",
        "path_traversal and countdown: partial scores count right lines; the official ones are there as partial_official",
        "pseudo_to_code: lines are compared after their layout is normalised; officially test cases are run, but code that a "
        "model wrote is not run here",
        "travel_planning: any plan that keeps the rules is right, and no search need be written; the official data are not "
        "published with the code",
        "tom_tracking: the remarks 'changed' and 'unchanged' of each step are not asked for",
    ],
    "paper_id": 160,
    "lengths": "from 1K or 2K tokens; a sixth to two fifths of the length is output",
    "needs": "nothing",
    "licence": "generated here",
}

LABELS: dict[str, Any] = {
    "ability": "procedural generation",
    "diffusion": "high",
    "scope": "high",
    "answers": "derived",
    "haystack": "own",
}

TASKS: dict[str, Task] = {
    "countdown": Task(make=countdown, metric=countdown_score, places=True, **{**LABELS, "scope": "low"}),
    "path_traversal": Task(make=path_traversal, metric=path_score, **LABELS),
    "tom_tracking": Task(make=tom_tracking, metric=belief_score, **LABELS),
    "html_to_tsv": Task(make=html_to_tsv, metric=table_f1, **{**LABELS, "diffusion": "low"}),
    "pseudo_to_code": Task(make=pseudo_to_code, metric=code_lines, **LABELS),
    "travel_planning": Task(make=travel_planning, metric=travel_score, **LABELS),
}
