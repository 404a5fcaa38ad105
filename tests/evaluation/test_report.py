"""The page is whole, self-contained and escaped; charts show every number, and labels do not collide."""

from __future__ import annotations

import base64
import hashlib
import random
import re
from html.parser import HTMLParser

import pytest

from longspan.evaluation.report import render_report
from longspan.evaluation.report.draw import heat_colours, log_ticks, short, spread
from longspan.evaluation.report.heatmap import heatmaps
from longspan.evaluation.report.lines import perplexity_lines, perplexity_table
from longspan.evaluation.report.scatter import COSTS, Box, place_labels, scatters
from longspan.evaluation.report.script import SCRIPT
from longspan.evaluation.report.tables import skipped_list, summary_table
from longspan.evaluation.summary import skips, summarise
from longspan.evaluation.wording import bytes_text, percent, seconds_text, tokens_text
from tests.evaluation.result_rows import ROWS, likelihood, row


class Balance(HTMLParser):
    """Checks that every element is closed, in order."""

    VOID = {"meta", "br", "wbr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_balanced_self_contained_and_escaped() -> None:
    answers = [
        {
            "question": "Who <keeps> it?",
            "expected": "Ann",
            "source": "Ann & Bob keep it.",
            "answers": [
                {"spec": "dense", "text": "Ann", "right": True},
                {"spec": "x", "text": " ", "right": False},
            ],
        }
    ]
    asked = {"question": "Why <u>?", "references": ["<s>"], "excerpt": [["<", "n & m", ">"]]}
    page = render_report(
        [*ROWS, row(seed=2, prediction="<em>", **asked)],
        title="T & Co",
        command="longspan bench --methods 'a<b>&c'",
        notes=["3 < 4"],
        answers=answers,
    )
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not {"link", "img", "iframe", "form", "object"} & set(parser.seen)
    assert not [name for name, _ in parser.attributes if name == "src" or name.startswith("on")]
    links = {value for name, value in parser.attributes if name == "href"}
    assert links == {f"#{value}" for name, value in parser.attributes if name == "id" and value != "hatch"}
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {"#hatch"}
    assert "://" not in page and "@import" not in page
    # The policy allows one script, by its digest, and nothing from anywhere else.
    assert parser.seen["script"] == 1
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert f"<script>{SCRIPT}</script>" in page
    assert "<b>&c" not in page and "a&lt;b&gt;&amp;c" in page
    for shown in (
        "T &amp; Co",
        "3 &lt; 4",
        "Who &lt;keeps&gt; it?",
        "Ann &amp; Bob keep it.",
        "&lt;too&gt; long",
        "Why &lt;u&gt;?",
        "&lt;s&gt;",
        "&lt;em&gt;",
        "…&lt;<mark>n &amp; m</mark>&gt;…",
    ):
        assert shown in page
    assert "prefers-color-scheme:dark" in page
    assert re.findall(r'class="verdict (\w+)"', page) == ["right", "wrong", "right"]
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Summary", "Answers", "Score by length", "Paired comparison", "Tasks", "Score against cost",
        "Score by depth and length", "Perplexity by position", "Samples", "Not run", "Settings and versions", "Run it again",
    ]  # fmt: skip


def test_sections_without_content_are_left_out() -> None:
    page = render_report([row()], title="t", command="c")
    for name in (
        "Answers",
        "Perplexity by position",
        "Not run",
        "Score by length",
        "Paired comparison",
        "Samples",
    ):
        assert f"<h2>{name}</h2>" not in page
    assert "Nothing was measured" in render_report([], title="t", command="c")


def test_numbers_of_the_summary() -> None:
    dense, tail, other = summarise(ROWS)
    assert (dense.num_samples, dense.accuracy, dense.num_texts) == (3, pytest.approx(2 / 3), 1)
    assert dense.prefill_seconds == 2.5
    assert dense.decode_tokens_per_second == 20.0
    assert (tail.accuracy, tail.kv_bytes, tail.peak_kv_bytes) == (0.75, 5_000_000, 9_000_000)
    assert (other.accuracy, other.interval, other.num_skipped, other.reasons) == (
        None,
        None,
        1,
        ("<too> long",),
    )
    assert dense.buckets[1].nll == 4.0
    assert dense.as_dict()["spec"] == "dense"
    assert skips(ROWS) == [("a<b>&c", "vt", 4096, "<too> long", 1)]
    assert "4,096 tokens (1): skipped: &lt;too&gt; long" in skipped_list(ROWS)
    short = [row(status="skipped", score=None, reason=f"needs {n} tokens", seed=n) for n in (410, 4_110)]
    assert skips(short) == [("dense", "vt", 4096, "needs 410 tokens", 2)]
    table = summary_table(ROWS)
    assert table.count('class="group"') == 4
    assert "66.7%" in table and "8 MB" in table and "2.50 s" in table


def test_heatmap_has_a_number_or_a_hatch_in_every_cell() -> None:
    drawn = heatmaps(ROWS)
    assert drawn.count("<figure>") == 3
    # 3 specs x depths (0, 50%, spread) x lengths (4096, 8192)
    assert drawn.count('class="cell"') == 5
    assert drawn.count('fill="url(#hatch)"') == 3 * 3 * 2 - 5
    assert re.findall(r'class="cell">(\d+)<', drawn) == ["0", "100", "100", "50", "100"]
    assert "not run: &lt;too&gt; long" in drawn
    assert heatmaps([likelihood("dense", 3.0)]) == ""


def test_heat_colours_can_be_read() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    grounds = []
    for step in range(101):
        ground, ink = (luminance(colour) for colour in heat_colours(step / 100))
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5
        grounds.append(ground)
    assert grounds == sorted(grounds)


def test_labels_never_overlap_or_leave_the_frame() -> None:
    frame = Box(left=40, top=0, right=360, bottom=220)
    rng = random.Random(3)
    for count in (1, 4, 9, 16):
        points = [(rng.uniform(50, 350), rng.uniform(10, 210)) for _ in range(count)]
        points[-1] = points[0]
        labels = [f"{number} snapkv(keep=0.25, window=32)"[:24] for number in range(1, count + 1)]
        obstacles = [Box(left=x - 2, right=x + 2, top=y - 30, bottom=y + 20) for x, y in points]
        found = [placed for placed in place_labels(points, labels, obstacles, frame) if placed]
        assert len(found) >= count - 4
        dots = [Box(left=x - 4, right=x + 4, top=y - 4, bottom=y + 4) for x, y in points]
        for index, (_, box) in enumerate(found):
            assert box.inside(frame)
            assert not any(box.overlaps(other) for _, other in found[:index])
            assert not any(box.overlaps(other) for other in (*dots, *obstacles))


def test_scatter_needs_bytes_and_a_score() -> None:
    drawn = scatters(ROWS)
    assert drawn.count("<figure>") == 2
    assert drawn.count("<circle") == 3
    assert scatters([row(kv_bytes=None)]) == ""
    assert scatters([row(kv_bytes=1_000)]).count("<circle") == 1
    _, first_token, per_token = (scatters(ROWS[:2], cost) for cost in COSTS)
    assert "dense: 50% (9.5% to 90.5%), 2.50 s" in first_token
    assert "dense: 50% (9.5% to 90.5%), 50 ms" in per_token
    assert scatters([row(read_seconds=None, prefill_seconds=None)], COSTS[1]) == ""


@pytest.mark.parametrize(
    "sizes", [(10_200_000, 12_000_000, 18_000_000), (9.8e6, 6e6), (5e5, 1e9), (3e6, 3.1e6)]
)
def test_tick_labels_of_a_cost_do_not_touch(sizes: tuple[float, ...]) -> None:
    drawn = scatters([row(f"spec{number}", kv_bytes=size) for number, size in enumerate(sizes)])
    places = [
        float(x) for x in re.findall(r'<text x="([\d.]+)" y="237" text-anchor="\w+" class="tick"', drawn)
    ]
    assert places == sorted(places) and len(places) >= 1
    # The widest label, "500 kB", takes about 40 units.
    assert all(after - before >= 40 for before, after in zip(places, places[1:], strict=False))


def test_perplexity_is_drawn_and_tabled_by_position() -> None:
    assert perplexity_lines(ROWS).count("<polyline") == 2
    table = perplexity_table(ROWS)
    assert table.count("<tr>") == 3
    assert [value in table for value in ("20.1", "54.6", "148.4")] == [True] * 3
    assert perplexity_lines([likelihood("dense", 900.0)]).count("<circle") == 2
    assert perplexity_table([row()]) == ""


def test_labels_at_line_ends_are_spread() -> None:
    assert spread([50.0, 50.0, 199.0, 198.0], base=200.0) == [50.0, 62.0, 200.0, 188.0]


@pytest.mark.parametrize("ends", [(20, 40), (24.1, 39.7), (1e6, 2e6), (5e6, 1.3e8), (3, 3e9), (1, 1.5)])
def test_ticks_are_inside_and_few(ends: tuple[float, float]) -> None:
    ticks = log_ticks(*ends)
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(ticks)
    assert ends[0] <= ticks[0] and ticks[-1] <= ends[1]


def test_wording() -> None:
    assert [percent(value) for value in (None, 0, 0.5, 0.98765, 1)] == ["–", "0%", "50%", "98.8%", "100%"]
    assert [seconds_text(value) for value in (None, 0.0123, 0.5, 2.345, 45.67, 125.4)] == [
        "–", "12 ms", "0.50 s", "2.35 s", "45.7 s", "2 min 05 s",
    ]  # fmt: skip
    assert [bytes_text(value) for value in (None, 0, 999, 12_300_000, 134_217_728, 8e9)] == [
        "–", "0 B", "999 B", "12.3 MB", "134 MB", "8 GB",
    ]  # fmt: skip
    assert [tokens_text(value) for value in (512, 1000, 4096, 131072, 2**20)] == [
        "512",
        "1,000",
        "4K",
        "128K",
        "1M",
    ]
    assert short("snapkv(keep=0.25)") == "snapkv(keep=0.25)"
    assert len(short("x" * 99)) == 26
