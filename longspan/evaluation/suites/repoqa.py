"""RepoQA, searching for a needle function: which function of a source tree does a description mean?

The text is source code, files one after the other with their paths. The description is what the author wrote: the first
paragraph of the function's documentation, which was taken out of the code, as all documentation was. It does not hold the
function's name. The function is to be repeated (`search`) or named (`search_name`).

Paper: RepoQA: Evaluating Long Context Code Understanding (Liu et al., 2024)
Scored by similarity: BLEU of the answer with the function is 0.8 or more, and higher than with any other; or by the name.
"""

from __future__ import annotations

import ast
import random
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from longspan.evaluation.metrics.text import first_line, need_references, optional_package
from longspan.evaluation.suites._source_tree import (
    Chunk,
    SourceTree,
    description,
    lay_around,
    source_tree,
    written,
)
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "repoqa",
    "title": "RepoQA: Evaluating Long Context Code Understanding",
    "year": 2024,
    "version": 1,
    "metric": "BLEU with the function at least 0.8 and higher than with nine others of the text; or the function's name",
    "differs": [
        "the code is the standard library of the Python that runs, or the Python files of LONGSPAN_SOURCE or of the data folder; the "
        "original has 50 repositories in five languages. Another version of Python, other questions",
        "descriptions are the authors' own documentation; in the original a model wrote them in four parts, so that no line of "
        "code is repeated. Documentation is taken out of the text here",
        "functions are chosen whose name and documentation occur once in the tree and whose documentation does not hold the name",
        "the answer is compared with the nine functions of the text that share most words with the one asked for; the original "
        "compares with the ten needles of the repository",
        "files stand in random order around the file of the function; the original sorts them by their imports",
        "functions take a ninth of the text and 320 tokens at most; answers end at 384 tokens, in the original at 1,024",
        "the instruction stands after the code only, in the original also before it",
        "`search_name` is not in the original: the part `name` of `search` without writing the function",
    ],
    "paper_id": 236,
    "lengths": "from 2K tokens for `search`, from 1K for `search_name`; about 2 million tokens in the standard library",
    "needs": "nltk for `search` (extra `bench`)",
    "licence": "of the files read; the standard library is under the PSF licence",
}

Ask = Literal["code", "name"]

THRESHOLD = 0.8
NUM_OTHERS = 9
FEWEST_WORDS, MOST_WORDS = 8, 60
FEWEST_LINES = 3
LARGEST_TOKENS = 320
LARGEST_PART = 9
NEW_TOKENS: dict[Ask, int] = {"code": 384, "name": 32}


def needle_function(
    prediction: str, references: Sequence[str], details: Mapping[str, Any]
) -> dict[str, float]:
    """ "score": 1.0 if the answer is most similar to the right function, by 0.8 or more; with "similarity" and "name".

    The first function of the first code block is taken, or the whole answer where there is no block. Similarity is BLEU of
    words between white space, smoothed by Chen and Cherry's fourth method. Official scorer: RepoQA `needle_evaluator` at
    threshold 0.8, which parses with tree-sitter.

    Args:
        references: the function. details: "name", of the function; "others", further functions of the text.
    """
    need_references(references)
    found = _function_of(prediction)
    similarity = max(_similarity(found, reference) for reference in references)
    best = all(_similarity(found, other) < similarity for other in details["others"])
    name = re.search(r"\bdef\s+(\w+)", found)
    return {
        "score": float(similarity >= THRESHOLD and best),
        "similarity": similarity,
        "name": float(bool(name) and name is not None and name[1] == details["name"]),
    }


def function_name(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> float:
    """1.0 if the first name that the answer's first line gives, with or without its class, is a reference."""
    need_references(references)
    names = re.findall(r"[A-Za-z_][\w.]*", first_line(prediction))
    return float(bool(names) and names[0].strip(".").split(".")[-1] in references)


def _function_of(answer: str) -> str:
    blocks = re.findall(r"^```(?:\w+)?\s*\n(.*?)(?=^```)```", answer.strip(), re.DOTALL | re.MULTILINE)
    if not blocks:
        return answer.strip()
    block = textwrap.dedent(blocks[0])
    try:
        statements = list(ast.walk(ast.parse(block)))
    except (SyntaxError, ValueError, RecursionError):
        return block
    functions = [one for one in statements if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not functions:
        return block
    start = min([functions[0].lineno, *(one.lineno for one in functions[0].decorator_list)]) - 1
    return "\n".join(block.split("\n")[start : functions[0].end_lineno])


def _similarity(answer: str, function: str) -> float:
    if not answer.strip():
        return 0.0
    bleu = optional_package("nltk.translate.bleu_score", "nltk")
    words = re.split(r"\s+", answer.strip())
    return float(
        bleu.sentence_bleu(
            [re.split(r"\s+", function.strip())], words, smoothing_function=bleu.SmoothingFunction().method4
        )
    )


@lru_cache(maxsize=2)
def _described(tree: SourceTree) -> Sequence[Chunk]:
    """Functions that their documentation tells apart, without naming them."""
    texts = Counter(description(one) for one in tree.functions)
    return tuple(
        one
        for one in tree.unique
        if FEWEST_WORDS <= len(description(one).split()) <= MOST_WORDS
        and texts[description(one)] == 1
        and one.code.count("\n") + 1 >= FEWEST_LINES
        and not re.search(rf"\b{re.escape(one.name.strip('_'))}\b", description(one), re.IGNORECASE)
    )


def _alike(function: Chunk, shown: Sequence[Chunk]) -> list[str]:
    """The functions of the text that share most of their words with this one: none else can be more similar to its copy."""
    words = set(function.code.split())

    def shared(other: Chunk) -> float:
        theirs = set(other.code.split())
        return len(words & theirs) / len(words | theirs)

    others = [one for one in shown if one.name and one is not function]
    return [one.code for one in sorted(others, key=shared, reverse=True)[:NUM_OTHERS]]


def search(ask: Ask) -> Callable[[random.Random, Room], Puzzle]:
    """A described function is to be repeated or named."""

    def make(rng: random.Random, room: Room) -> Puzzle:
        tree = source_tree("repoqa")
        described = _described(tree)
        for function in rng.sample(described, len(described)):
            question = f"This describes one function of the code above:\n{description(function)}\n\n"
            question += (
                "Find that function and repeat it exactly as it stands there, in a code block that begins and ends with ```."
                if ask == "code"
                else "Find that function. Give its name only."
            )
            prefix = "" if ask == "code" else "The name of the function is"
            left = room.left(question, prefix, max_new_tokens=NEW_TOKENS[ask])
            if tree.tokens(function.code, room.tokenizer) <= min(LARGEST_TOKENS, left // LARGEST_PART):
                break
        else:
            raise ValueError(
                f"no function is short enough for {room.tokens} tokens; ask for {max(2048, 2 * room.tokens)} or more"
            )
        shown = lay_around(
            [function], tree, left, room, rng, skip=lambda chunk: function.code in chunk.text, neighbours=True
        )
        return Puzzle(
            needles=(),
            context=written(shown),
            evidence=(function.code,),
            question=question,
            answer_prefix=prefix,
            references=(function.code if ask == "code" else function.name,),
            answer=f"```python\n{function.code}\n```" if ask == "code" else function.name + ".",
            max_new_tokens=NEW_TOKENS[ask],
            details={"name": function.name, "others": _alike(function, shown)} if ask == "code" else {},
        )

    return make


FINDING: dict[str, Any] = {
    "ability": "code search", "diffusion": "high", "scope": "low", "answers": "derived", "haystack": "own", "places": True,
}  # fmt: skip

TASKS: dict[str, Task] = {
    "search": Task(make=search("code"), metric=needle_function, **FINDING),
    "search_name": Task(make=search("name"), metric=function_name, **FINDING),
}
