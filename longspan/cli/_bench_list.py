"""What `longspan bench --list` and `--list-tasks` show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from longspan.evaluation.wording import percent

if TYPE_CHECKING:
    from rich.table import Table

    from longspan.evaluation.registry import TaskEntry

__all__ = ["suite_table", "task_table"]

_UNSAID = "–"
_SHOWN = 16


def suite_table(
    cards: Mapping[str, Mapping[str, Any]],
    entries: Mapping[str, TaskEntry],
    wrappers: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Table:
    """A block a suite: its paper, tasks, abilities, lengths, what it needs, and the licence of its data.

    Args:
        cards: the suites' cards by name.
        entries: all tasks by full name.
        wrappers: full names of the wrappers of each suite that has some.
    """
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, card in cards.items():
        mine = [entry for entry in entries.values() if entry.suite == name]
        labels = [entry.exam.labels for entry in mine]
        abilities = dict.fromkeys("perplexity" if found is None else found.ability for found in labels)
        table.add_row("suite", f"[bold]{name}[/bold]")
        for key, value in (
            ("paper", f"{card['title']}, {card['year']}"),
            ("tasks", _shortened([entry.name.split("/", 1)[1] for entry in mine])),
            ("wrappers", ", ".join(f"{wrapper}:TASK" for wrapper in wrappers.get(name, ()))),
            ("measures", ", ".join(abilities) or _UNSAID),
            ("lengths", card.get("lengths", _UNSAID)),
            ("needs", card.get("needs", _UNSAID)),
            ("licence", card.get("licence", _UNSAID)),
        ):
            if value:
                table.add_row(key, _plain(value))
        table.add_row("", "")
    return table


def _shortened(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all, see --list-tasks)" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or _UNSAID) + more


def task_table(entries: Mapping[str, TaskEntry]) -> Table:
    """A line a task: what it asks, how hard the needed text is to find, how much is needed, chance, and the metric."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("task", "ability", "diffusion", "scope"):
        table.add_column(title, overflow="fold")
    table.add_column("chance", justify="right")
    table.add_column("metric", overflow="fold")
    for name, entry in entries.items():
        labels = entry.exam.labels
        if labels is None:
            table.add_row(name, "perplexity", _UNSAID, _UNSAID, _UNSAID, "likelihood")
            continue
        chance = percent(labels.chance)
        table.add_row(name, labels.ability, labels.diffusion, labels.scope, chance, labels.metric_name)
    return table


def _plain(value: Any) -> str:
    """Text of a card's value, with nothing in it read as markup."""
    from rich.markup import escape

    parts = value if isinstance(value, list | tuple) else [value]
    return escape(", ".join(map(str, parts)))
