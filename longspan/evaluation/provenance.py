"""What a number was measured with: versions and commit."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

__all__ = ["commit", "versions"]

ARCHIVED = "$Format:%h$"  # .gitattributes has `git archive` put the commit here


def versions() -> dict[str, str]:
    """Versions of python, longspan, torch and transformers, by name."""
    from longspan import __version__

    found = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {"longspan": __version__, **found, "python": platform.python_version()}


def commit() -> str | None:
    """Commit of the source tree that longspan runs from, with "+" and a digest of edits to it.

    In an archive that git made, the commit that git wrote into it; None elsewhere.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None if ARCHIVED.startswith("$") else ARCHIVED
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changes = _git(root, "diff", "HEAD", "--", "longspan")
        return f"{head}+{hashlib.sha256(changes.encode()).hexdigest()[:6]}" if changes else head
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
