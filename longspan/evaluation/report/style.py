"""The report's style sheet: system fonts, one column of text, charts in a grid, colours for light and dark."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root{color-scheme:light dark;--ground:#fbfbfa;--panel:#fff;--ink:#1d2125;--soft:#5a636b;--rule:#dcdfe2;--track:#eceef0;
--good:#18703a;--bad:#b3261e;--hatch:#b9bfc5;--s1:#1f6fb4;--s2:#c2384b;--s3:#26803f;--s4:#a86400;--s5:#7647b3;--s6:#0b7f8c;
--s7:#9c3487;--s8:#59666e;--mark:#ffe9a8;--partly:#8a5a00}
@media (prefers-color-scheme:dark){:root{--ground:#14171a;--panel:#1c2024;--ink:#e7eaed;--soft:#a3adb6;--rule:#343a40;
--track:#2a2f34;--good:#6fd39b;--bad:#ff8f86;--hatch:#565e66;--s1:#6cb2f0;--s2:#ff8b98;--s3:#6fd39b;--s4:#f0b04f;--s5:#b99af0;
--s6:#5fd0dc;--s7:#ee8fd6;--s8:#a9b8c0;--mark:#5c4a12;--partly:#f0b04f}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 16px 60px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .6rem;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2rem 0 .7rem;padding-bottom:.3rem;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:0 0 .4rem}
p{max-width:74ch;margin:.4rem 0}.small{color:var(--soft);font-size:.85rem}.note{color:var(--soft)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.86em;overflow-wrap:anywhere}
pre{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px;white-space:pre-wrap}
.scroll{overflow-x:auto;background:var(--panel);border:1px solid var(--rule);border-radius:8px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--rule)}
tr:first-child>*{border-top:0}tbody tr:first-child>*{border-top:1px solid var(--rule)}
th{font-weight:500}th:first-child,td:first-child{text-align:left}thead th{color:var(--soft);font-size:.82rem}
th[scope=row]{white-space:normal;min-width:190px;overflow-wrap:break-word;font-weight:500}
tr.group th{background:var(--track);font-weight:600}
.settings th[scope=row]{min-width:0;color:var(--soft);white-space:nowrap;vertical-align:top;width:1%}
.settings td{text-align:left;white-space:normal;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:16px}
figure{margin:0;background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px;min-width:0}
figcaption{font-size:.9rem;font-weight:600;margin-bottom:8px;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;font-family:inherit}
svg text{font-size:11px;fill:var(--ink)}svg .tick{fill:var(--soft)}svg .axis{fill:var(--soft)}svg .cell{font-weight:600}
svg .value{font-weight:600}svg .grid{stroke:var(--rule);stroke-width:1}svg .track{fill:var(--track)}
svg .not-run{stroke:var(--hatch)}.hatch-ground{fill:var(--panel)}.hatch-line{stroke:var(--hatch);stroke-width:2}
svg .bar{fill:currentColor}svg .interval{fill:none;stroke:var(--ink);stroke-width:1.4}
svg .interval-ground{fill:none;stroke:var(--panel);stroke-width:4;opacity:.8}
svg .dot{fill:currentColor;stroke:var(--panel);stroke-width:1.5}
svg .whisker{stroke:currentColor;stroke-width:2;opacity:.55}
svg .line{fill:none;stroke:currentColor;stroke-width:2}svg .leader{stroke:currentColor;stroke-width:1;opacity:.7}
svg .label{fill:currentColor;font-weight:600}
.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.s4{color:var(--s4)}.s5{color:var(--s5)}.s6{color:var(--s6)}
.s7{color:var(--s7)}.s8{color:var(--s8)}
.num{display:inline-block;min-width:1.5em;padding:0 .35em;border:1.5px solid currentColor;border-radius:1em;
text-align:center;font-size:.82em;line-height:1.45}
.charts+.scroll{margin-top:16px}
.card{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:14px 16px;margin:0 0 14px}
blockquote{margin:.4rem 0;padding:.2rem 0 .2rem .9rem;border-left:3px solid var(--rule);
color:var(--soft);max-width:74ch}
.given{list-style:none;margin:.6rem 0 0;padding:0}
.given li{display:flex;gap:12px;padding:8px 0;border-top:1px solid var(--rule);overflow-wrap:anywhere}
.verdict{flex:0 0 5em;font-weight:600;white-space:nowrap}.right{color:var(--good)}.wrong{color:var(--bad)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:1rem 0 0;font-size:.9rem}nav a,a{color:var(--s1)}
.scroll+.small,.charts+.small{margin-top:.5rem}h3:not(:first-child){margin-top:1.2rem}.scroll+.charts,.small+.charts,
.small+.scroll,.small+.fold{margin-top:16px}
details.small{margin:.5rem 0}summary{cursor:pointer}.fold>summary{margin:.4rem 0 .8rem;color:var(--soft)}
tr.total>*{border-top:2px solid var(--rule);font-weight:600}
.versus th[scope=row]{min-width:150px}
.fit{width:fit-content;max-width:100%}
.span-bar{width:110px;min-width:110px}.span-bar .zero{stroke:var(--hatch);stroke-width:1}
.span-bar .span{stroke:currentColor;stroke-width:2.5;stroke-linecap:round}.span-bar circle{fill:currentColor}
.span-bar *{color:var(--soft)}.span-bar .better{color:var(--good)}.span-bar .worse{color:var(--bad)}
.specs{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 10px;padding:0;font-size:.88rem}
.specs li{overflow-wrap:anywhere}
.matrix{width:auto}.matrix td,.matrix th{padding:4px 10px}.matrix tr.group th{text-align:left}
.matrix th[scope=row]{min-width:120px}.hatched{color:var(--soft);background:repeating-linear-gradient(45deg,transparent 0 4px,
var(--track) 4px 7px)}
.sort{all:unset;cursor:pointer;padding:2px 0}.sort:focus-visible{outline:2px solid var(--s1);outline-offset:3px}
.sort::after{content:" ↕";color:var(--hatch)}[aria-sort=ascending] .sort::after{content:" ↑";color:var(--ink)}
[aria-sort=descending] .sort::after{content:" ↓";color:var(--ink)}
.controls{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;margin:0 0 10px;font-size:.9rem}
.controls input[type=search]{font:inherit;color:inherit;background:var(--panel);border:1px solid var(--rule);border-radius:6px;
padding:6px 10px;min-width:min(100%,240px)}
.samples details{background:var(--panel);border:1px solid var(--rule);border-bottom:0;padding:8px 14px}
.samples details:first-of-type{border-radius:8px 8px 0 0}.samples details:last-of-type{border-bottom:1px solid var(--rule);
border-radius:0 0 8px 8px}[hidden]{display:none!important}
.scroll th[scope=row],.scroll thead th:first-child{position:sticky;left:0;background:var(--panel)}
@media (max-width:600px){.spec{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden}
th,td{padding:6px 8px}th[scope=row]{min-width:104px;max-width:150px}.scroll table{font-size:.84rem}
.given li{gap:8px}.verdict{flex-basis:4.4em}}
.samples summary{font-size:.92rem}.samples summary span{margin-right:10px}.marks{white-space:nowrap}
.marks>span{margin-right:8px!important}.marks .num{margin-left:3px}.samples p{overflow-wrap:anywhere}
.partly{color:var(--partly)}mark{background:var(--mark);color:var(--ink);padding:0 .1em;border-radius:3px}
blockquote{overflow-wrap:anywhere}
@media print{main{max-width:none}figure,.charts+.scroll{margin-top:16px}
.card{break-inside:avoid}}
""".strip()
