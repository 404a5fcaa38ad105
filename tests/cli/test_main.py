"""The command line as a whole: start-up, help, and how errors end."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import typer

import longspan.cli

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = ("ask", "bench", "demo", "env", "methods", "train")


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `longspan methods` raise."""

    def install(error: BaseException) -> None:
        def command(count: int = 1) -> None:
            """Fail."""
            raise error

        real = longspan.cli.import_module
        monkeypatch.setattr(
            longspan.cli,
            "import_module",
            lambda name: SimpleNamespace(command=command) if name.endswith(".methods") else real(name),
        )

    return install


def test_all_commands_are_there() -> None:
    assert set(COMMANDS) <= set(longspan.cli.command_names())


@pytest.mark.parametrize("name", longspan.cli.command_names())
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert longspan.cli.run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: longspan {name}" in text
    assert "Example" in text


def test_help_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert longspan.cli.run([]) == 0
    bare = capsys.readouterr().out
    assert longspan.cli.run(["-h"]) == 0
    assert capsys.readouterr().out == bare
    assert all(f" {name} " in bare for name in longspan.cli.command_names())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert longspan.cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"longspan {longspan.__version__}\n"


def test_help_starts_fast_and_light() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return time.perf_counter() - start

    code = (
        "import sys; from longspan.cli import run; run(['--help']); "
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert min(seconds(code) for _ in range(4)) - min(seconds("pass") for _ in range(4)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["method"], "longspan: No such command 'method'. Did you mean 'methods'? (see `longspan --help`)\n"),
        (
            ["methods", "--jsn", "x"],
            "longspan: No such option: --jsn (Possible options: --json) (see `longspan methods --help`)\n",
        ),
        (
            ["methods", "--json"],
            "longspan: Option '--json' requires an argument (see `longspan methods --help`)\n",
        ),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert longspan.cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == line
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("got 3,\n allowed 1; give 1"), 2, "longspan: got 3, allowed 1; give 1"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
            2,
            "No such file or directory: 'a.txt'",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.json"),
            2,
            "no space left on the disk for 'out.json'; free",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "no space left on the disk for the output; free some",
        ),
        (OSError("no file of weights in 'x'"), 2, "longspan: no file of weights in 'x'"),
        (KeyboardInterrupt(), 130, "longspan: interrupted"),
        (typer.Abort(), 130, "longspan: interrupted"),
        (typer.BadParameter("must be even"), 2, "longspan: Invalid value: must be even"),
    ],
)
def test_errors_end_in_one_line(
    error: BaseException,
    code: int,
    line: str,
    command_that: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command_that(error)
    assert longspan.cli.run(["methods"]) == code
    captured = capsys.readouterr()
    assert line in captured.err
    assert captured.err.count("\n") == 1


def test_exit_codes_pass_through(command_that: Callable[[BaseException], None]) -> None:
    command_that(typer.Exit(7))
    assert longspan.cli.run(["methods"]) == 7
    with pytest.raises(SystemExit) as caught:
        longspan.cli.main(["methods"])
    assert caught.value.code == 7


def test_bugs_keep_their_traceback(
    command_that: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command_that(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        longspan.cli.run(["methods"])
    monkeypatch.setenv("LONGSPAN_TRACEBACK", "1")
    command_that(ValueError("where from"))
    with pytest.raises(ValueError, match="where from"):
        longspan.cli.run(["methods"])


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from longspan.cli import main; main(['methods', '--json', '-'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (141, "")
