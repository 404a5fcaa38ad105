"""RepoQA: the described function stands in its file, answers are compared as the official scorer does, other trees are read."""

from __future__ import annotations

import ast
import importlib
import textwrap
from pathlib import Path
from typing import Any

import pytest

from longspan.evaluation.haystacks.noise import noise_haystack
from longspan.evaluation.metrics import grade
from longspan.evaluation.registry import find_task
from longspan.evaluation.suites._source_tree import SOURCE_VARIABLE, source_tree, written
from longspan.evaluation.suites.repoqa import function_name, needle_function
from longspan.evaluation.task import Sample
from longspan.reference import ASSETS
from longspan.reference.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ASSETS)


def build(task: str, tokenizer: Any, seed: int, length: int = 4096, depth: float | None = None) -> Sample:
    made: Sample = find_task(f"repoqa/{task}").exam.build(
        length_tokens=length, depth=depth, seed=seed, haystack=noise_haystack(), tokenizer=tokenizer
    )
    return made


def test_the_description_is_the_documentation_of_the_one_function_of_that_name(tokenizer: Any) -> None:
    for seed in range(20):
        sample = build("search_name", tokenizer, seed)
        (name,) = sample.references
        text = sample.question.split(":\n", 1)[1].split("\n\n")[0]
        path = (
            sample.context[: sample.context.index(sample.evidence[0])].rsplit("# Path: ", 1)[1].split("\n")[0]
        )
        source = Path(importlib.import_module("ast").__file__).parent / path  # the standard library
        found = [
            node
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        ]
        documented = [" ".join((ast.get_docstring(node) or "").split()) for node in found]
        assert any(doc.startswith(text) for doc in documented)
        assert sample.context.count(f"def {name}(") == 1
        assert text not in sample.context


def test_code_in_the_text_has_no_documentation(tokenizer: Any) -> None:
    for file in source_tree("repoqa").files[::40]:
        for node in ast.walk(ast.parse("\n\n".join(chunk.text for chunk in file))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                assert ast.get_docstring(node) is None


def test_the_place_asked_for_is_kept_and_the_neighbours_are_the_file(tokenizer: Any) -> None:
    starts = [build("search", tokenizer, 5, length=8192, depth=depth).depths[0] for depth in (0.0, 0.5, 1.0)]
    assert starts == pytest.approx([0.0, 0.5, 1.0], abs=0.1)


FUNCTION = "def area(width, height):\n    if width < 0:\n        return 0\n    return width * height"
OTHER = "def volume(width, height, depth):\n    return width * height * depth"
DETAILS: dict[str, Any] = {"name": "area", "others": [OTHER]}


@pytest.mark.parametrize(
    ("said", "score", "name"),
    [
        (f"Here it is:\n```python\n{FUNCTION}\n```\nDone.", 1.0, 1.0),
        (FUNCTION, 1.0, 1.0),
        (f"```python\n{textwrap.indent(FUNCTION, '    ')}\n```", 1.0, 1.0),
        (f"```\nimport os\n\n{FUNCTION}\n```", 1.0, 1.0),  # the first function of the block
        (f"```\n{OTHER}\n```", 0.0, 0.0),
        ("```\ndef area(w):\n    pass\n```", 0.0, 1.0),
        ("area", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_answers_are_compared_with_all_functions(said: str, score: float, name: float) -> None:
    parts = grade(needle_function, said, [FUNCTION], DETAILS)
    assert (parts["score"], parts["name"]) == (score, name)


def test_a_function_more_like_the_answer_takes_it() -> None:
    twin = FUNCTION.replace("return 0", "return 1")
    parts = grade(needle_function, twin, [FUNCTION], {"name": "area", "others": [twin]})
    assert parts["score"] == 0.0 and parts["similarity"] > 0.6


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("area.", 1.0),
        ("`Shape.area`", 1.0),
        ("area()\nvolume()", 1.0),
        ("volume, area", 0.0),
        ("areas", 0.0),
        ("", 0.0),
    ],
)
def test_names(said: str, score: float) -> None:
    assert function_name(said, ["area"], {}) == score


def test_another_tree_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "plane.py").write_text(
        '"""Module."""\nimport os\n\n# about area\n@cache\ndef area(width):\n    """Size."""\n    return width\n\n\n'
        'class Square:\n    """A square."""\n    side = 1\n\n    def grow(self):\n        """Only words."""\n\n    def shrink(self):\n'
        "        return 1\n"
    )
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_plane.py").write_text("def test_area():\n    pass\n")
    monkeypatch.setenv(SOURCE_VARIABLE, str(tmp_path))
    tree = source_tree("repoqa")
    assert [(one.owner, one.name, one.doc) for one in tree.functions] == [
        ("", "area", "Size."),
        ("Square", "grow", "Only words."),
        ("Square", "shrink", ""),
    ]
    assert tree.functions[0].code == "@cache\ndef area(width):\n    return width"
    assert written(tree.files[0]) == (
        "# Path: shapes/plane.py\nimport os\n\n# about area\n@cache\ndef area(width):\n    return width\n\n"
        "class Square:\n    side = 1\n\n    def grow(self):\n        pass\n\n    def shrink(self):\n        return 1"
    )


def test_a_tree_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="which is no folder"):
        source_tree("repoqa")
    monkeypatch.setenv(SOURCE_VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="holds no Python function"):
        source_tree("repoqa")
    monkeypatch.delenv(SOURCE_VARIABLE)
    with pytest.raises(ValueError, match="ask for fewer tokens"):
        build("search_name", tokenizer, 0, length=10_000_000)
