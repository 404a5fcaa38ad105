"""Pseudo-code to Python, line by line. What a model writes is compared, never run."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longspan.evaluation.metrics.text import need_references
from longspan.evaluation.suites import _fact_lists as lists
from longspan.evaluation.suites.longproc.blocks import filled, scattered_blocks
from longspan.evaluation.task import Puzzle, Room

NAMES = "total count value limit index score level width height price speed depth weight amount".split()
LINE_TOKENS = 80
MOST_LINES = 400
DEEPEST = 3
INTRO = (
    "Here are programs in pseudo-code. Each line of pseudo-code is one line of Python, indented by four spaces a level. An "
    "example:"
)
EXAMPLE = (
    "Program of the example.\nset total to 5\nfor index from 1 to 9\n    increase total by index\nif total is above 20\n"
    "    print total\notherwise\n    decrease total by 3\nset count to the remainder of total by 4\nIn Python:\ntotal = 5\n"
    "for index in range(1, 10):\n    total += index\nif total > 20:\n    print(total)\nelse:\n    total -= 3\ncount = total % 4"
)

Line = tuple[str, str]


def _statement(rng: random.Random) -> Line:
    """A line of pseudo-code and its Python."""
    one, other, third = rng.sample(NAMES, 3)
    number = rng.randint(2, 99)
    return rng.choice(
        (
            (f"set {one} to {number}", f"{one} = {number}"),
            (f"increase {one} by {other}", f"{one} += {other}"),
            (f"decrease {one} by {number}", f"{one} -= {number}"),
            (f"print {one}", f"print({one})"),
            (f"set {one} to {other} times {third}", f"{one} = {other} * {third}"),
            (f"set {one} to {other} plus {number}", f"{one} = {other} + {number}"),
            (f"set {one} to {other} minus {third}", f"{one} = {other} - {third}"),
            (f"set {one} to the remainder of {other} by {number}", f"{one} = {other} % {number}"),
            (f"set {one} to the larger of {other} and {third}", f"{one} = max({other}, {third})"),
        )
    )


def _opening(rng: random.Random) -> Line:
    one, other = rng.sample(NAMES, 2)
    low, high = rng.randint(0, 9), rng.randint(10, 60)
    return rng.choice(
        (
            (f"for {one} from {low} to {high}", f"for {one} in range({low}, {high + 1}):"),
            (f"if {one} is above {high}", f"if {one} > {high}:"),
            (f"if {one} equals {other}", f"if {one} == {other}:"),
            (f"while {one} is below {other}", f"while {one} < {other}:"),
        )
    )


def program(rng: random.Random, num_lines: int) -> list[Line]:
    """A program of random statements; every opened block has a line."""
    made, depth, opened = list[Line](), 0, [False]
    while len(made) < num_lines:
        last = len(made) == num_lines - 1
        fresh = bool(made) and made[-1][1].endswith(":")
        if not fresh and depth and rng.random() < 0.35:
            depth -= 1
            was_if = opened.pop()
            if was_if and not last and rng.random() < 0.5:
                made.append(("    " * depth + "otherwise", "    " * depth + "else:"))
                depth += 1
                opened.append(False)
            continue
        lead = "    " * depth
        if depth < DEEPEST and not last and rng.random() < 0.25:
            pseudo, code = _opening(rng)
            depth += 1
            opened.append(code.startswith("if"))
        else:
            pseudo, code = _statement(rng)
        made.append((lead + pseudo, lead + code))
    return made


def _titles(rng: random.Random) -> Iterator[str]:
    given = {""}
    while True:
        title = f"{rng.choice(lists.ADJECTIVES)} {rng.choice(lists.OBJECTS)}"
        if title not in given:
            given.add(title)
            yield f"Program of the {title}."


def _others(rng: random.Random, titles: Iterator[str], num_lines: int) -> Iterator[str]:
    while True:
        yield next(titles)
        for pseudo, _ in program(rng, rng.randint(3, max(4, num_lines // 2))):
            yield pseudo


def pseudo_to_code(rng: random.Random, room: Room) -> Puzzle:
    """One line for each 80 tokens of room, in one program of many."""
    titles, num_lines = _titles(rng), min(MOST_LINES, max(6, room.tokens // LINE_TOKENS))
    title, made = next(titles), program(rng, num_lines)
    asked = "\n".join((title, *(pseudo for pseudo, _ in made)))
    code = "\n".join(line for _, line in made)
    answer = f"```python\n{code}\n```"
    question = (
        f"Write the {title[0].lower()}{title[1:-1]} in Python, one line for each of its lines, without comments, between "
        "```python and ```."
    )
    output = room.count(answer) + 24
    left = room.left(INTRO, EXAMPLE, asked, question, max_new_tokens=output)
    if left < 100:
        raise ValueError(f"{room.tokens} tokens are too few for a program and its code; ask for 2048 or more")
    fillers = filled(room, _others(rng, titles, num_lines), left)
    context = "\n".join((INTRO, EXAMPLE, *scattered_blocks(asked, fillers, "Program of", room, rng)))
    return Puzzle(
        needles=(),
        context=context,
        evidence=(asked,),
        question=question,
        references=(code,),
        answer=answer,
        max_new_tokens=output,
    )


def code_lines(prediction: str, references: Sequence[str], details: Mapping[str, Any]) -> dict[str, float]:
    """1.0 if the lines of code are the reference's; "partial": part of them before the first wrong one.

    Code is what stands between ```python and ```, else the whole answer. Blank lines, comments, spaces within a line and brackets
    around a whole condition do not count; the depth of indentation does.
    """
    need_references(references)
    fenced = re.search(r"```\w*\n(.*?)(?:```|\Z)", prediction, re.DOTALL)
    found, wanted = _normal(fenced[1] if fenced else prediction), _normal(references[0])
    right = next(
        (place for place, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other),
        min(len(found), len(wanted)),
    )
    return {"score": float(found == wanted), "partial": right / len(wanted), "extracted": float(bool(found))}


def _normal(code: str) -> list[tuple[int, str]]:
    """(depth, line without spaces) of every line that holds code."""
    lines, widths = list[tuple[int, str]](), [0]
    for line in code.expandtabs(4).splitlines():
        bare = re.sub(r"\s*#.*", "", line)
        if not bare.strip():
            continue
        width = len(bare) - len(bare.lstrip())
        while width < widths[-1]:
            widths.pop()
        if width > widths[-1]:
            widths.append(width)
        text = re.sub(r"^(if|while)\((.*)\):$", r"\1\2:", re.sub(r"\s", "", bare))
        lines.append((len(widths) - 1, text))
    return lines
