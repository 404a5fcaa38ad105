"""`longspan methods`: the list of methods, and the card of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longspan.cli._output import JSON_HELP, check_writable, console, write_json, write_text

if TYPE_CHECKING:
    from longspan.card import Card

_PROOF_FILE = Path(__file__).resolve().parents[2] / "docs" / "proof.json"


def command(
    name: Annotated[str | None, typer.Argument(help="Show this method's card instead of the list.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=JSON_HELP)] = None,
    docs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write one Markdown page for every method here.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Run every pair of methods on a small model and write the table here."
        ),
    ] = None,
) -> None:
    """List the methods, or show one method's card: paper, equation, parameters, needs, proof.

    Example: longspan methods snapkv
    """
    from longspan.card import all_cards
    from longspan.errors import UserInputError, did_you_mean

    cards = all_cards()
    if name is not None and name not in cards:
        raise UserInputError(f"there is no method {name!r}; {did_you_mean(name, cards)}")
    shown = cards if name is None else {name: cards[name]}
    proof = read_proof()
    if docs is not None:
        from longspan.cli._method_pages import write_pages

        write_pages(docs, shown, proof)
    if pairs is not None:
        from longspan.cli._output import loading

        check_writable(pairs)
        with loading():
            from longspan.evaluation.pairs import all_outcomes
            from longspan.evaluation.pairs_page import pairs_page
        write_text(pairs, pairs_page(all_outcomes()))
    if json_file is not None:
        entries = [card.to_dict() | {"proof": proof.get(card.name)} for card in shown.values()]
        write_json(json_file, entries if name is None else entries[0])
    if docs is None and pairs is None and (json_file is None or str(json_file) != "-"):
        if name is None:
            _print_list(shown)
        else:
            _print_card(cards[name], proof.get(name))


def read_proof(file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Rows of `docs/proof.json` by method; empty where it has not been made, as in an installed package."""
    file = file or _PROOF_FILE
    if not file.exists():
        return {}
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def proof_facts(proof: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of what was measured; the claim itself is on the card."""
    told = ("claim", "spec", "task", "length_tokens", "against")
    return [(key.replace("_", " "), str(value)) for key, value in proof.items() if key not in told]


def exact_text(exact: bool | str) -> str:
    return exact if isinstance(exact, str) else "exact" if exact else "approximate"


def _print_list(cards: dict[str, Card]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", style="bold", no_wrap=True)
    for title in ("family", "roles", "phase", "exact", "memory"):
        table.add_column(title)
    table.add_column("idea", ratio=1)
    for card in sorted(cards.values(), key=lambda card: (card.family, card.name)):
        exact = "yes" if card.exact is True else "no" if card.exact is False else "partly"
        roles = " ".join(card.roles) or "none"
        table.add_row(card.name, card.family, roles, card.phase, exact, card.frees, Text(card.idea))
    console().print(table)
    console().print("[dim]`longspan methods NAME` shows one card.[/dim]")


def _print_card(card: Card, proof: dict[str, Any] | None) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    paper = f"{card.title} ({card.year})" if card.year else card.title
    out.print(Text(card.name, style="bold"), Text(paper, style="italic"), sep="  ")
    out.print()
    out.print(Text(card.docstring))
    out.print()
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, text in card_facts(card):
        facts.add_row(label, Text(text))
    out.print(facts)
    if card.parameters:
        out.print()
        out.print(_parameter_table(card))
    if proof is not None:
        out.print()
        facts = Table(title="proof on the reference model", title_justify="left", show_header=False, box=None)
        for label, text in proof_facts(proof):
            facts.add_row(label, Text(text))
        out.print(facts)


def card_facts(card: Card) -> list[tuple[str, str]]:
    """Label and text of everything on a card but its docstring, parameters and proof."""
    facts = [
        ("family", card.family),
        ("roles", ", ".join(card.roles) or "none"),
        ("phase", card.phase),
        ("training", card.training),
        ("answers", exact_text(card.exact)),
        ("memory", card.frees),
        ("needs", "; ".join(card.needs) or "nothing"),
    ]
    facts += [(f"tolerance: {law}", reason) for law, reason in card.tolerances.items()]
    if card.claim:
        claim = card.claim
        bar = (
            f"accuracy at least {claim['at_least']:.0%}"
            if "at_least" in claim
            else f"accuracy above it by at least {claim['margin']:.0%}"
        )
        check = f"{claim['spec']} against {claim['against']}, {claim['task']} at {claim['length_tokens']:,} tokens"
        facts += [("claim", str(claim["text"])), ("check", f"{check}: {bar}")]
    return facts


def _parameter_table(card: Card) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameter", style="bold", no_wrap=True)
    for title in ("type", "default"):
        table.add_column(title)
    table.add_column("meaning and source", ratio=1)
    for parameter in card.parameters:
        default = "required" if parameter.default is None else parameter.default
        table.add_row(parameter.name, Text(parameter.type), Text(default), Text(parameter.comment))
    return table
