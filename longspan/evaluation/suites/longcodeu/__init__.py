"""LongCodeU: what is defined where, how values flow, who calls whom, and what the documentation says, in a source tree.

`units` names the functions of a file, `data_flow` follows a variable through a function, `calls` and `callers` name the
functions that one calls or is called by, `documentation` copies what a manual says about a function. All answers are worked
out from the syntax tree, and questions are only asked where it leaves no doubt.

Paper: LongCodeU: Benchmarking Long-Context Language Models on Long Code Understanding (Li et al., 2025)
Scored by F1 of the names or lines (recall and precision besides); `documentation` by exact match of the sentence.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from longspan.evaluation.suites._source_tree import (
    Chunk,
    SourceTree,
    description,
    lay_around,
    source_tree,
    written,
)
from longspan.evaluation.suites.longcodeu.analysis import (
    callers_in_file,
    calls_in_file,
    defines,
    entry,
    flows,
    listed,
    mentions,
    named_units,
)
from longspan.evaluation.suites.longcodeu.scores import lines_f1, names_f1, sentence_match
from longspan.evaluation.task import Puzzle, Room, Task

CARD: dict[str, Any] = {
    "name": "longcodeu",
    "title": "LongCodeU: Benchmarking Long-Context Language Models on Long Code Understanding",
    "year": 2025,
    "version": 1,
    "metric": "F1 of names or lines, with precision and recall; exact match of a sentence for documentation",
    "differs": [
        "the code is the standard library of the Python that runs, or the Python files of LONGSPAN_SOURCE or of the data folder; the "
        "original has 116 repositories of 2024. Another version of Python, other questions",
        "four of the eight tasks: searching a function by its description is suite `repoqa`; dependencies and semantic relations "
        "of a unit that is only described need descriptions by a model",
        "`callers`, the inverse of `calls`, is not in the original",
        "one score, F1, where the original reports recall and precision, and matches lines and code by CodeBLEU or the longest "
        "common subsequence",
        "calls are those by plain name of functions of the same file; functions where names are hidden or ambiguous are not asked about",
        "documentation strings are taken out of the code, and are the manual of `documentation`, where the original takes the "
        "repositories' documents",
    ],
    "paper_id": 249,
    "lengths": "from 1K, 2K or 4K tokens, by task; in the standard library to 200K (documentation) or 2 million (others)",
    "needs": "nothing",
    "licence": "of the files read; the standard library is under the PSF licence",
}

Found = TypeVar("Found")

LARGEST_PART = 9  # of the text that the one function asked about takes
FEWEST_FILES = 40  # to draw from: of a few, the names would be known soon
OWN_TOKENS = 300  # question and answer, about
NEW_TOKENS = {"names": 160, "lines": 320, "sentence": 192}
COMMAS = "Give their names only, without their classes, with commas between them."


def _code_puzzle(
    wanted: Sequence[Chunk],
    evidence: Sequence[Chunk],
    question: str,
    references: Sequence[str],
    room: Room,
    rng: random.Random,
    *,
    kind: Literal["names", "lines"],
    skip: Callable[[Chunk], bool],
    neighbours: bool = False,
) -> Puzzle:
    tree = source_tree("longcodeu")
    codes = [one.code for one in evidence]
    left = room.left(question, "Answer:", max_new_tokens=NEW_TOKENS[kind])
    shown = lay_around(
        wanted,
        tree,
        left,
        room,
        rng,
        skip=lambda chunk: skip(chunk) or any(code in chunk.text for code in codes),
        neighbours=neighbours,
    )
    return Puzzle(
        needles=(),
        context=written(shown),
        evidence=tuple(codes),
        question=question,
        answer_prefix="Answer:",
        references=tuple(references),
        answer=("\n" if kind == "lines" else ", ").join(references),
        max_new_tokens=NEW_TOKENS[kind],
    )


def _too_short(room: Room) -> ValueError:
    return ValueError(
        f"too few files or functions of the tree suit {room.tokens} tokens; ask for {max(2048, 2 * room.tokens)} or more"
    )


def _first(found: Iterator[Found], room: Room) -> Found:
    for one in found:
        return one
    raise _too_short(room)


def _fits(chunks: Sequence[Chunk], tree: SourceTree, room: Room, part: int) -> bool:
    return (
        sum(tree.tokens(chunk.text, room.tokenizer) for chunk in chunks) <= (room.tokens - OWN_TOKENS) // part
    )


def _excerpt(parts: Sequence[Chunk], tree: SourceTree, room: Room) -> Sequence[Chunk]:
    """The whole file where it takes half of the room at most, otherwise the parts in their order if they do, or nothing."""
    ordered = sorted(parts, key=lambda chunk: tree.place[chunk])
    file = tree.files[tree.place[parts[0]][0]]
    return next((chunks for chunks in (file, ordered) if _fits(chunks, tree, room, 2)), ())


def units(rng: random.Random, room: Room) -> Puzzle:
    """All functions and methods that a file defines."""
    tree = source_tree("longcodeu")
    files = [file for file in tree.files if _fits(file, tree, room, 2) and named_units(tree, file)]
    if len(files) < FEWEST_FILES:
        raise _too_short(room)
    file = rng.choice(files)
    functions = named_units(tree, file)
    return _code_puzzle(
        file,
        functions,
        f"Name all functions and methods that are defined in the file {file[0].path}, but not those that begin with two "
        f"underscores. {COMMAS}",
        [one.name for one in functions],
        room,
        rng,
        kind="names",
        skip=lambda chunk: False,
    )


def data_flow(rng: random.Random, room: Room) -> Puzzle:
    """All lines of a function in which one of its variables gets a value or is used."""
    tree = source_tree("longcodeu")
    drawn = rng.sample(tree.unique, len(tree.unique))
    function, found = _first(
        (
            (function, found)
            for function in drawn
            if _fits([function], tree, room, LARGEST_PART) and (found := sorted(flows(function)))
        ),
        room,
    )
    variable, lines = rng.choice(found)
    question = (
        f"Follow the variable `{variable}` through the function {function.name} in the file {function.path}: copy every line of the "
        "function in which it stands, in their order, one below the other, and nothing else."
    )
    return _code_puzzle(
        [function],
        [function],
        question,
        lines,
        room,
        rng,
        kind="lines",
        skip=lambda chunk: chunk.name == function.name,
        neighbours=True,
    )


def calls(rng: random.Random, room: Room) -> Puzzle:
    """The functions of the text that a function calls."""
    tree = source_tree("longcodeu")
    drawn = rng.sample(tree.unique, len(tree.unique))
    function, callees, called, shown = _first(
        (
            (function, callees, called, shown)
            for function in drawn
            for callees, called in [calls_in_file(tree, function)]
            if callees and (shown := _excerpt([function, *callees], tree, room))
        ),
        room,
    )
    return _code_puzzle(
        shown,
        [function, *callees],
        f"Which of the functions that are defined in the code above does the function {function.name} in the file {function.path} "
        f"call? {COMMAS}",
        [one.name for one in callees],
        room,
        rng,
        kind="names",
        skip=lambda chunk: any(defines(chunk, name) for name in called),
    )


def callers(rng: random.Random, room: Room) -> Puzzle:
    """The functions of the text that call a function."""
    tree = source_tree("longcodeu")
    drawn = rng.sample(tree.unique, len(tree.unique))
    function, found, shown = _first(
        (
            (function, found, shown)
            for function in drawn
            if (found := callers_in_file(tree, function))
            and (shown := _excerpt([function, *found], tree, room))
        ),
        room,
    )
    return _code_puzzle(
        shown,
        found,
        f"Which functions or methods in the code above call the function {function.name} of the file {function.path}? {COMMAS}",
        [one.name for one in found],
        room,
        rng,
        kind="names",
        skip=lambda chunk: mentions(chunk, function.name),
    )


def documentation(rng: random.Random, room: Room) -> Puzzle:
    """What a manual of functions says about one of them, word for word."""
    tree = source_tree("longcodeu")
    order = rng.sample(listed(tree), len(listed(tree)))
    asked, sentence = order[0], description(order[0])
    place = f"{asked.owner}.{asked.name}" if asked.owner else asked.name
    question = (
        f"What does the manual above say about {place} of the file {asked.path}? Copy its words below that name exactly, and "
        "nothing else."
    )
    left = room.left(question, "Answer:", max_new_tokens=NEW_TOKENS["sentence"])
    left -= tree.tokens(entry(asked), room.tokenizer)
    fillers = list[str]()
    for other in order[1:]:
        cost = tree.tokens(entry(other), room.tokenizer)
        if cost <= left:
            fillers.append(entry(other))
            left -= cost
        elif left < max(16, room.tokens // 100):
            break
    if len(fillers) == len(order) - 1:
        raise ValueError(f"the documentation is less than {room.tokens} tokens; ask for fewer tokens")
    return Puzzle(
        needles=(),
        context="\n\n".join(room.scatter([entry(asked)], fillers, rng)),
        evidence=(entry(asked),),
        question=question,
        answer_prefix="Answer:",
        references=(sentence,),
        answer=sentence,
        max_new_tokens=NEW_TOKENS["sentence"],
    )


def _task(make: Callable[[random.Random, Room], Puzzle], ability: str, **labels: Any) -> Task:
    given = {
        "metric": names_f1,
        "diffusion": "high",
        "scope": "low",
        "answers": "derived",
        "haystack": "own",
        **labels,
    }
    return Task(make=make, ability=ability, **given)


TASKS: dict[str, Task] = {
    "units": _task(units, "code perception", diffusion="low", chance=0.04),
    "data_flow": _task(data_flow, "data flow", metric=lines_f1, places=True),
    "calls": _task(calls, "dependencies", chance=0.03),
    "callers": _task(callers, "dependencies"),
    "documentation": _task(
        documentation, "documentation", metric=sentence_match, diffusion="low", places=True
    ),
}
