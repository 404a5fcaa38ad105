"""Gates of one model on disk: which kv heads need far text, and by how much."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longspan._files import write_whole

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What training the gates of a model gave.

    Args:
        model: the name it was loaded by, for messages.
        fingerprints: `ModelInfo.fingerprint` of its weights, one for each number format they may be loaded in.
        alpha: a row for each layer with the gate of each kv head, 0 (streaming) to 1 (retrieval); None for the heads of
            layers with a sliding window of their own, which methods never reach.
        settings: how they were made, for the reader.
    """

    model: str
    fingerprints: tuple[str, ...]
    alpha: tuple[tuple[float | None, ...], ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def strongest(self, fraction: float) -> frozenset[tuple[int, int]]:
        """(layer, kv head) of the largest gates: `fraction` of all, rounded; the earlier head where equal."""
        ranked = sorted(
            (-gate, layer, head)
            for layer, row in enumerate(self.alpha)
            for head, gate in enumerate(row)
            if gate is not None
        )
        return frozenset((layer, head) for _, layer, head in ranked[: round(fraction * len(ranked))])


def save_gates(path: str | Path, gates: Gates) -> None:
    """Write gates as JSON, one line a layer; the file appears whole or not at all."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} to save {target.name} in; make it first")
    plain = {"format": FORMAT} | asdict(gates)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in plain.pop("alpha"))
    text = json.dumps(plain, indent=1)[:-2] + f',\n "alpha": [\n{rows}\n ]\n}}\n'
    write_whole(target, text)


def load_gates(path: str | Path) -> Gates:
    """Read gates that `save_gates` wrote.

    Raises:
        ValueError: there is no such file, or it holds no gates.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path that save_gates wrote")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file of gates; make it again with save_gates") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT or not _is_alpha(plain.get("alpha")):
        raise ValueError(
            f"{path} holds no gates of this version of longspan (a row for each layer, a number from 0 to 1 for each "
            "kv head); make it again with save_gates"
        )
    return Gates(
        model=str(plain.get("model")),
        fingerprints=tuple(map(str, plain.get("fingerprints") or ())),
        alpha=tuple(tuple(row) for row in plain["alpha"]),
        settings=dict(plain.get("settings") or {}),
    )


def _is_alpha(rows: object) -> bool:
    return isinstance(rows, list) and all(isinstance(row, list) and all(map(_is_gate, row)) for row in rows)


def _is_gate(gate: object) -> bool:
    return gate is None or (isinstance(gate, int | float) and not isinstance(gate, bool) and 0 <= gate <= 1)
