"""The shell of a page: one file that asks for nothing else, under a policy that forbids everything it does not need."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from longspan.evaluation.report.draw import HATCH, element
from longspan.evaluation.report.script import SCRIPT
from longspan.evaluation.report.style import STYLE

__all__ = ["page"]


def page(
    title: str, notes: Sequence[str], sections: Sequence[tuple[str, str]], *, with_script: bool = True
) -> str:
    """A whole HTML document.

    Args:
        title: heading, as plain text.
        notes: sentences under it, as plain text.
        sections: (heading, markup); those without markup are left out.
        with_script: carry the script that sorts and filters; the page says the same without it.
    """
    shown = [(name, content) for name, content in sections if content]
    body = [element("h1", escape(title)), *(element("p", escape(note), class_="note") for note in notes)]
    if len(shown) > 4:
        links = "".join(element("a", name, href=f"#{_anchor(name)}") for name, _ in shown)
        body.append(element("nav", links, aria_label="Sections"))
    body += [element("section", element("h2", name) + content, id=_anchor(name)) for name, content in shown]
    # The policy names the script by its digest, so that nothing that slipped into the page could run.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest(SCRIPT)}'"
    script = element("script", SCRIPT) if with_script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=False)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{HATCH}<main>{''.join(body)}</main>{script}</body></html>\n"
    )


def _anchor(name: str) -> str:
    return "-".join(name.lower().split())


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
