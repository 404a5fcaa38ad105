"""The report's tables: the summary, what was skipped, and the settings at the foot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longspan.evaluation.report.draw import element, spec_markup
from longspan.evaluation.results import Row
from longspan.evaluation.summary import Summary, distinct, skips, summarise
from longspan.evaluation.wording import bytes_text, percent, seconds_text, tokens_text

__all__ = ["settings_table", "skipped_list", "summary_table"]

_COLUMNS = ("spec", "accuracy", "95% interval", "samples", "prefill", "decode", "tok/s", "KV held", "KV peak")


def summary_table(rows: Sequence[Row]) -> str:
    """A line a spec under a heading a length, and accuracy over all lengths at the end when there are several."""
    specs = distinct(rows, "spec")
    lengths = sorted(distinct(rows, "length_tokens"))
    head = element("tr", "".join(element("th", name, scope="col") for name in _COLUMNS))
    body = []
    for length in lengths:
        if len(lengths) > 1:
            body.append(_heading(f"{tokens_text(length)} tokens"))
        body += [
            _line(group, specs)
            for group in summarise([row for row in rows if row["length_tokens"] == length])
        ]
    if len(lengths) > 1:
        body.append(_heading("All lengths"))
        body += [_line(group, specs, costs=False) for group in summarise(rows)]
    table = element("table", element("thead", head) + element("tbody", "".join(body)), class_="summary")
    legend = (
        "Prefill: median seconds from the text to the first token. Decode: median seconds of generating the answer. "
        "KV: bytes of keys and values, measured from storage; held after reading, and the peak at any time."
    )
    return element("div", table, class_="scroll") + element("p", legend, class_="small")


def _heading(shown: str) -> str:
    return element("tr", element("th", shown, colspan=len(_COLUMNS), scope="colgroup"), class_="group")


def _line(group: Summary, specs: Sequence[str], costs: bool = True) -> str:
    number = specs.index(group.group["spec"]) + 1
    name = element("th", spec_markup(number, group.group["spec"]), scope="row")
    interval = f"{percent(group.interval[0])} to {percent(group.interval[1])}" if group.interval else "–"
    samples = f"{group.num_samples}" + (f" ({group.num_skipped} skipped)" if group.num_skipped else "")
    shown = [percent(group.accuracy), interval, samples]
    speed = group.decode_tokens_per_second
    if costs:
        shown += [seconds_text(group.prefill_seconds), seconds_text(group.decode_seconds)]
        shown += [
            f"{speed:,.1f}" if speed else "–",
            bytes_text(group.kv_bytes),
            bytes_text(group.peak_kv_bytes),
        ]
    else:
        shown += [""]
    cells = [element("td", value) for value in shown[:-1]]
    cells.append(element("td", shown[-1], colspan=None if costs else 5))
    return element("tr", name + "".join(cells))


def skipped_list(rows: Sequence[Row]) -> str:
    """What was not run and why, as a list; empty text when everything ran."""
    lines = [
        element(
            "li", f"{escape(spec)}, {escape(task)}, {length:,} tokens ({count}): skipped: {escape(reason)}"
        )
        for spec, task, length, reason, count in skips(rows)
    ]
    return element("ul", "".join(lines)) if lines else ""


def settings_table(rows: Sequence[Row]) -> str:
    """Everything the rows say about how they were measured: distinct values, joined."""
    settings: dict[str, Any] = {}
    for name in (
        "model",
        "fingerprint",
        "device",
        "dtype",
        "haystack",
        "task",
        "length_tokens",
        "depth",
        "seed",
        "commit",
    ):
        values = [value for value in distinct(rows, name) if value is not None]
        settings[name.replace("_", " ")] = [percent(value) for value in values] if name == "depth" else values
    for row in rows:
        versions = row.get("versions")
        if isinstance(versions, Mapping):
            for name, version in versions.items():
                known = settings.setdefault(name, [])
                if version not in known:
                    known.append(version)
    lines = [
        element(
            "tr",
            element("th", escape(name), scope="row") + element("td", escape(", ".join(map(str, values)))),
        )
        for name, values in settings.items()
        if values
    ]
    return element("div", element("table", "".join(lines), class_="settings"), class_="scroll")
