"""What the commands of `longspan train` share."""

import os
from typing import Any


def row_workers(given: int | None) -> int:
    """Processes that make rows: as given, else all cores but one, four at most."""
    return min(4, max(1, (os.cpu_count() or 2) - 1)) if given is None else given


def print_record(record: dict[str, Any]) -> None:
    """One line of JSON, at once."""
    import json

    print(json.dumps(record), flush=True)
