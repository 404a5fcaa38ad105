"""LongProc: each procedure is carried out again on what the text says, by other means than its generator's."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from longspan.evaluation.exams import PuzzleExam
from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.metrics.ordering_steps import countdown_solved
from longspan.evaluation.registry import find_task
from longspan.evaluation.suites.longproc.programs import code_lines
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(task: str, tokenizer: Any, seed: int, length: int = 4096) -> Sample:
    exam = find_task(f"longproc/{task}").exam
    assert isinstance(exam, PuzzleExam)
    return exam.build(
        length_tokens=length, depth=None, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )


def marks(task: str, answer: str, sample: Sample) -> dict[str, float]:
    labels = find_task(f"longproc/{task}").exam.labels
    assert labels is not None
    return grade(labels.metric, answer, sample.references, sample.details)


def numbers_in(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def test_countdown_problems_and_their_search(tokenizer: Any) -> None:
    for seed in range(6):
        sample = build("countdown", tokenizer, seed)
        problems = [line for line in sample.context.splitlines() if line.startswith("Numbers")]
        (unsolved,) = [line for line in problems if line.endswith("not solved yet.")]
        *numbers, target = numbers_in(unsolved)
        assert sample.details == {"nums": numbers, "target": target}
        for line in problems:
            if line != unsolved:
                given, solution = line.removesuffix(".").split(": ")
                *pool, goal = numbers_in(given)
                assert countdown_solved(pool, goal, solution.replace("; ", "\n"))
        tries = re.findall(r"Try (\d+) ([-+*/]) (\d+) = ([-\d.]+)\.(.*)", sample.answer)
        assert tries
        for first, sign, second, result, rest in tries:
            right = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__truediv__}[sign]
            assert float(result) == pytest.approx(right(int(first), int(second)), abs=0.0051)
            assert int(first) >= int(second)
            whole = sign != "/" or int(first) % int(second) == 0
            assert ("Not allowed" in rest) != (whole and 0 < float(result) <= 2000)
        leaves = [int(value) for value in re.findall(r"\. (\d+) (?:!=|=) ", sample.answer)]
        assert leaves.index(target) == len(leaves) - 1, "the search ends where the target is first found"


def test_countdown_scores(tokenizer: Any) -> None:
    sample = build("countdown", tokenizer, 1)
    assert marks("countdown", sample.answer, sample)["score"] == 1.0
    bare = sample.answer[sample.answer.index("<Solution>") :]
    assert marks("countdown", bare, sample)["score"] == 1.0, "any right solution counts"
    lines = sample.answer.split("\n")
    cut = marks("countdown", "\n".join(lines[:7]), sample)
    steps = lines.index("Now we have found the target.") - 2
    assert cut["score"] == 0.0
    assert cut["partial"] == pytest.approx(5 / steps)
    assert cut["partial_official"] == pytest.approx(4 / steps)


def test_the_only_way_out_leads_to_the_goal(tokenizer: Any) -> None:
    for seed in range(6):
        sample = build("path_traversal", tokenizer, seed)
        found = re.findall(r"^The only way out of (.+) is the (\w+) to (.+)\.$", sample.context, re.MULTILINE)
        ways = {start: (vehicle, end) for start, vehicle, end in found}
        assert len(ways) == len(found), "one way out of each city"
        ends = re.search(r"route from (.+) to (.+?)\. Write", sample.question)
        assert ends is not None
        city, route = ends[1], list[str]()
        while city != ends[2]:
            vehicle, following = ways[city]
            route.append(f"From {city}, take a {vehicle} to {following}.")
            city = following
        assert len(route) == len(sample.evidence) == 40
        answer = "<Route>\n" + "\n".join(route) + "\n</Route>"
        assert marks("path_traversal", answer, sample)["score"] == 1.0
        route[10] = "From here, take a bus to there."
        wrong = marks("path_traversal", "<Route>\n" + "\n".join(route) + "\n</Route>", sample)
        assert wrong == {"score": 0.0, "partial": 0.25, "partial_official": 0.275, "extracted": 1.0}


def follow(story: list[str], name: str, thing: str) -> list[tuple[str, str, bool, str]]:
    """After each step: where the person is, where the thing is, whether it is seen, where it is believed to be."""
    where: dict[str, str] = {}
    known, told = "None", []
    for line in story:
        for person, place in re.findall(r"(?:: |; )(\w+) is in the ([\w -]+?)(?=;|\.)", line):
            where[person] = place
        for other, spot in re.findall(r"; the ([\w-]+) is on the ([\w -]+'s \w+)", line):
            where[other] = spot
        if found := re.search(r": (\w+) (?:moves to|enters) the ([\w -]+?)(?: and takes|\.)", line):
            where[found[1]] = found[2]
        if found := re.search(r": (\w+) leaves the", line):
            where[found[1]] = "None"
        if found := re.search(r"(?:moves|takes) the ([\w-]+) to the ([\w -]+'s \w+)", line):
            where[found[1]] = found[2]
        sees = where[thing].split("'s ")[0] == where[name]
        known = where[thing] if sees else known
        told.append((where[name], where[thing], sees, known))
    return told


def test_beliefs(tokenizer: Any) -> None:
    blind = 0
    for seed in range(8):
        sample = build("tom_tracking", tokenizer, seed)
        found = re.search(r"story of (.+?)\. Where does (\w+) believe the ([\w-]+) to be", sample.question)
        assert found is not None
        title, name, thing = found.groups()
        (story,) = [block for block in sample.context.split("Story of ")[1:] if block.startswith(f"{title}.")]
        told = follow(story.strip().splitlines()[1:], name, thing)
        lines = [
            f"- Step {step}: {{{name} location: {place}; {thing} location: {spot}; {name} sees {thing}: {sees}; "
            f"{name}'s belief on {thing}: {known}}}"
            for step, (place, spot, sees, known) in enumerate(told)
        ]
        assert marks("tom_tracking", "\n".join(lines), sample)["score"] == 1.0
        assert sample.answer.endswith(f"Final Answer: {told[-1][3]}")
        blind += sum(known not in (spot, "None") for _, spot, _, known in told)
        lines[4] = lines[4].replace("Step 4", "Step 4 elsewhere")
        assert marks("tom_tracking", "\n".join(lines), sample)["partial"] == pytest.approx(4 / len(lines))
    assert blind > 8, "false beliefs do occur"


class Texts(HTMLParser):
    """Texts of a page by the line they stand in, with tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.lines.setdefault(self.getpos()[0], []).extend(
            [tag, *(f"{name}={value}" for name, value in attrs)]
        )

    def handle_data(self, data: str) -> None:
        self.lines.setdefault(self.getpos()[0], []).append(data)


def item_of(parts: list[str]) -> tuple[str, str, str, str] | None:
    """Name, price, colour and stock of a line with an item on it."""
    text = "|".join(parts)
    patterns = (
        r"class=item\|h3\|(?P<n>.+?)\|p\|class=price\|b\|(?P<p>\d+)\| crowns\|p\|Colour: (?P<c>\w+)\|p\|span\|class=stock\|(?P<s>\d+)",
        r"class=item\|data-stock=(?P<s>\d+)\|a\|href=#\|em\|(?P<n>.+?)\|ul\|li\|(?P<c>\w+)\|li\|(?P<p>\d+) crowns",
        r"section\|header\|(?P<n>.+?) \((?P<c>\w+)\)\|dl\|dt\|Price\|dd\|(?P<p>\d+) crowns\|dt\|Stock\|dd\|(?P<s>\d+)",
    )
    for pattern in patterns:
        if found := re.search(pattern, text):
            return found["n"], found["p"], found["c"], found["s"]
    return None


def test_items_of_pages(tokenizer: Any) -> None:
    forms = set()
    for seed in range(10):
        sample = build("html_to_tsv", tokenizer, seed)
        parser = Texts()
        parser.feed(sample.context)
        rows = [item for parts in parser.lines.values() if (item := item_of(parts))]
        forms.add(sample.evidence[0].split(">")[0].split()[0])
        table = "\n".join("\t".join(row) for row in (("name", "price", "colour", "stock"), *rows))
        assert sample.answer == f"```tsv\n{table}\n```"
        assert len(rows) == len(sample.evidence) >= 20
        half = table.splitlines()[: 1 + len(rows) // 2]
        score = marks("html_to_tsv", "```tsv\n" + "\n".join(half) + "\n```", sample)
        recall = (len(rows) // 2) / len(rows)
        assert score["precision"] == 1.0 and score["score"] == pytest.approx(2 * recall / (1 + recall))
    assert len(forms) == 3


TRANSLATIONS = (
    (r"set (\w+) to the remainder of (\w+) by (\w+)", r"\1 = \2 % \3"),
    (r"set (\w+) to the larger of (\w+) and (\w+)", r"\1 = max(\2, \3)"),
    (r"set (\w+) to (\w+) times (\w+)", r"\1 = \2 * \3"),
    (r"set (\w+) to (\w+) plus (\w+)", r"\1 = \2 + \3"),
    (r"set (\w+) to (\w+) minus (\w+)", r"\1 = \2 - \3"),
    (r"set (\w+) to (\w+)", r"\1 = \2"),
    (r"increase (\w+) by (\w+)", r"\1 += \2"),
    (r"decrease (\w+) by (\w+)", r"\1 -= \2"),
    (r"print (\w+)", r"print(\1)"),
    (r"for (\w+) from (\d+) to (\d+)", r"for \1 in range(\2, \3 + 1):"),
    (r"if (\w+) is above (\w+)", r"if \1 > \2:"),
    (r"if (\w+) equals (\w+)", r"if \1 == \2:"),
    (r"while (\w+) is below (\w+)", r"while \1 < \2:"),
    (r"otherwise", r"else:"),
)


def translate(line: str) -> str:
    bare = line.strip()
    for pattern, code in TRANSLATIONS:
        if found := re.fullmatch(pattern, bare):
            text = re.sub(r"(\d+) \+ 1\)", lambda sum_: f"{int(sum_[1]) + 1})", found.expand(code))
            return line[: len(line) - len(bare)] + text
    raise AssertionError(line)


def test_programs_in_python(tokenizer: Any) -> None:
    for seed in range(12):
        sample = build("pseudo_to_code", tokenizer, seed)
        (title,) = re.findall(r"program of the [\w -]+(?= in Python)", sample.question)
        block = sample.context.split(f"{title.capitalize()}.\n")[1].split("\nProgram of")[0]
        code = "\n".join(map(translate, block.splitlines()))
        ast.parse(code)
        assert marks("pseudo_to_code", f"```python\n{code}\n```", sample)["score"] == 1.0


@pytest.mark.parametrize(
    ("answer", "score", "partial"),
    [
        ("```python\na = 1\nif a > 0:\n    print(a)\n```", 1.0, 1.0),
        ("Here it is:\n```py\na=1  # first\n\nif (a > 0):\n\tprint( a )\n```\nDone.", 1.0, 1.0),
        ("a = 1\nif a > 0:\n  print(a)", 1.0, 1.0),
        ("a = 1\nif a > 0:\nprint(a)", 0.0, 2 / 3),
        ("a = 1\nif a >= 0:\n    print(a)", 0.0, 1 / 3),
        ("a = 1\nif a > 0:\n    print(a)\nprint(a)", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_code_lines(answer: str, score: float, partial: float) -> None:
    found = code_lines(answer, ("a = 1\nif a > 0:\n    print(a)",), {})
    assert (found["score"], found["partial"]) == (score, pytest.approx(partial))
