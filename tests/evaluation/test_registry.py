"""Tasks are found by their files, by full, bare or wrapped names."""

from __future__ import annotations

import pytest

from longspan.errors import UserInputError
from longspan.evaluation.registry import (
    SUITES_ROOT,
    _sources,
    find_suite_cards,
    find_task,
    find_tasks,
    tasks_named,
)


def test_tasks_are_found_by_their_files() -> None:
    entries = find_tasks()
    assert entries["ruler/vt"].suite == "ruler"
    assert entries["perplexity/perplexity"].exam.kind == "likelihood"
    assert all(name == f"{entry.suite}/{name.split('/', 1)[1]}" for name, entry in entries.items())
    assert len({entry.generator for entry in entries.values()}) == len(
        {entry.suite for entry in entries.values()}
    )
    assert set(find_suite_cards()) == {entry.suite for entry in entries.values()}


def test_the_digest_covers_what_a_suite_imports() -> None:
    """Items change with the helpers and suites that make them, and then old rows no longer count."""
    names = {file.relative_to(SUITES_ROOT).as_posix() for file in _sources(SUITES_ROOT / "keychain.py")}
    assert {
        "keychain.py",
        "ruler/needles.py",
        "lveval_made/__init__.py",
        "_fact_lists.py",
    } <= names
    assert "s3eval/queries.py" not in names


def test_a_bare_name_serves_where_it_is_unique() -> None:
    assert find_task("vt") is find_task("ruler/vt")
    assert tasks_named("facts") == ["facts/single", "facts/several", "facts/unseen"]
    assert tasks_named("niah_single_2") == ["ruler/niah_single_2"]
    with pytest.raises(UserInputError, match="did you mean"):
        find_task("perplexitty")


def test_a_name_in_two_suites_must_be_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = find_tasks()
    twins = {"one/same": entries["ruler/vt"], "two/same": entries["ruler/cwe"]}
    for name, entry in twins.items():
        twins[name] = type(entry)(suite=name[:3], name=name, exam=entry.exam, generator="g")
    monkeypatch.setattr("longspan.evaluation.registry.find_tasks", lambda: twins)
    with pytest.raises(UserInputError, match="in several suites; name one of one/same, two/same"):
        find_task("same")
    assert find_task("two/same").suite == "two"
