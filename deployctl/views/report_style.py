"""The style sheet of the report's page: one column, the system's own fonts, light and dark, and paper.

Colour never says anything alone: states are words too. Tables that do not fit scroll by themselves, the page never does.
"""

from __future__ import annotations

STYLE = """
:root{--paper:#fcfbf9;--card:#f4f1ec;--ink:#1d1b18;--soft:#6a645b;--rule:#e2dcd2;--accent:#0f6b62;--other:#b4512e;--base:#8a8478;
--good:#1f7a46;--bad:#b3362b;--open:#8a6412}
@media(prefers-color-scheme:dark){:root{--paper:#171614;--card:#211f1c;--ink:#ece8e1;--soft:#a69f93;--rule:#38342f;--accent:#55c2b3;
--other:#e5906b;--base:#948d81;--good:#6cc592;--bad:#f08a7d;--open:#d9b25c}}
*{box-sizing:border-box}
html{background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
-webkit-text-size-adjust:100%}
body{margin:0}
main{max-width:66rem;margin:0 auto;padding:clamp(1.5rem,5vw,4rem) clamp(1rem,4vw,2.5rem) 3rem}
p,h1,h2,h3,dd,code{overflow-wrap:anywhere}
tbody th{overflow-wrap:break-word}
header{padding-bottom:2rem}
.kicker{margin:0 0 1.25rem;font-weight:650;letter-spacing:.01em}
.kicker span{color:var(--soft);font-weight:400;margin-left:.6em}
h1{font-size:clamp(1.4rem,2.9vw,1.8rem);line-height:1.32;font-weight:600;letter-spacing:-.014em;margin:0 0 1.25rem;
text-wrap:pretty}
header p{max-width:46rem;margin:.5rem 0}
.decision{color:var(--soft);padding-top:.5rem}
.badge{display:inline-block;margin-right:.5em;padding:.06rem .6rem;border:1px solid currentColor;border-radius:99px;font-size:.82rem;
font-weight:600;color:var(--soft)}
.badge.pass{color:var(--good)}.badge.fail{color:var(--bad)}.badge.inconclusive{color:var(--open)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,12.5rem),1fr));gap:1px;background:var(--card);
border:1px solid var(--rule);border-radius:12px;overflow:hidden}
.tile{box-shadow:0 0 0 1px var(--rule);padding:1.1rem 1.25rem 1.15rem}
.tile p{margin:0}
.of{font-size:.85rem;color:var(--soft)}
.value{font-size:1.9rem;line-height:1.25;font-weight:620;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.under{font-size:.82rem;color:var(--soft);font-variant-numeric:tabular-nums}
section{margin:0 0 1rem}
section+section{margin-top:3.25rem}
h2{font-size:1.32rem;line-height:1.3;font-weight:640;letter-spacing:-.01em;margin:0 0 .5rem}
.version h2{border-top:1px solid var(--rule);padding-top:2.25rem}
h2+p{max-width:46rem;margin:.25rem 0 1rem;color:var(--soft)}
h3{font-size:1.02rem;font-weight:640;margin:2.25rem 0 .6rem}
.pair{display:grid;grid-template-columns:minmax(0,1fr);gap:1rem 2rem;align-items:start}
@media(min-width:54rem){.pair{grid-template-columns:minmax(0,9fr) minmax(0,11fr)}.pair.alone{grid-template-columns:minmax(0,44rem)}}
.chart svg{display:block;width:100%;max-width:27rem;height:auto}
.note,.ids,.unknown{font-size:.86rem;color:var(--soft);max-width:46rem;margin:.7rem 0 0}
.ids code{margin-right:.1em}
.scroll{overflow-x:auto;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:4px}
table{border-collapse:collapse;width:100%;font-size:.86rem;line-height:1.4;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.42rem .8rem .42rem 0;border-bottom:1px solid var(--rule);vertical-align:top;font-weight:400;
white-space:nowrap}
td:last-child,th:last-child{padding-right:0}
thead th,thead td{color:var(--soft);font-size:.8rem;vertical-align:bottom;overflow-wrap:normal}
tbody th{font-weight:560;min-width:4.5rem;max-width:16rem;white-space:normal}
.role{display:block;white-space:nowrap;color:var(--soft);font-weight:400;font-size:.92em}
td .long{display:block;white-space:normal;overflow-wrap:anywhere;min-width:7rem;max-width:16rem}
.scroll+.scroll{margin-top:1.25rem}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.state.below{color:var(--bad);font-weight:600}.state.above{color:var(--good);font-weight:600}
.state.insufficient,.state.like{color:var(--soft)}
.matrix{width:auto}
.matrix td,.matrix thead th{text-align:right;padding:.42rem .6rem;min-width:2.6rem}
.matrix thead th:first-child,.matrix tbody th{text-align:left;padding-left:0}
.matrix td{border:1px solid var(--paper);border-radius:3px}
.matrix td.same{background:color-mix(in srgb,var(--accent) calc(var(--heat)*.45),transparent);font-weight:600}
.matrix td.other{background:color-mix(in srgb,var(--other) min(45%,calc(var(--heat)*1.2 + 5%)),transparent)}
.matrix td.none{color:color-mix(in srgb,var(--soft) 55%,transparent)}
.matrix abbr{text-decoration:none}
.number{color:var(--soft);margin-right:.3em}
svg text{fill:var(--ink);font-size:12.5px;font-variant-numeric:tabular-nums}
svg .name{text-anchor:end}
svg .tick{fill:var(--soft);font-size:11px;text-anchor:middle}
svg .tick.end{text-anchor:end}
svg .axis{fill:var(--soft);font-size:11.5px;text-anchor:middle}
svg .grid{stroke:var(--rule);stroke-width:1}
svg .reference{stroke:var(--soft);stroke-width:1.25;stroke-dasharray:4 4}
svg .interval{stroke-width:3;stroke-linecap:round;opacity:.45}
svg .line{fill:none;stroke:var(--accent);stroke-width:1.75;stroke-linejoin:round}
svg circle{fill:var(--accent);stroke:var(--paper);stroke-width:1.5}
svg line.interval{stroke:var(--accent)}
svg circle.baseline{fill:var(--base)}svg line.interval.baseline{stroke:var(--base)}
svg circle.below{fill:var(--bad)}svg line.interval.below{stroke:var(--bad)}
svg circle.above{fill:var(--good)}svg line.interval.above{stroke:var(--good)}
.reading dl{display:grid;grid-template-columns:minmax(0,10rem) minmax(0,36rem);gap:.5rem 1.5rem;font-size:.9rem;margin:.75rem 0 0}
.reading dt{font-weight:600}.reading dd{margin:0;color:var(--soft)}
@media(max-width:36rem){.reading dl{grid-template-columns:minmax(0,1fr);gap:.1rem}.reading dd{margin-bottom:.7rem}}
footer{margin-top:3rem;border-top:1px solid var(--rule);padding-top:1rem;font-size:.8rem;color:var(--soft)}
footer p{margin:0}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#bbb;--accent:#0f6b62;--other:#b4512e;--base:#777;
--good:#1f7a46;--bad:#b3362b;--open:#8a6412}
html{font-size:10.5pt}main{max-width:none;padding:0}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
h2,h3{break-after:avoid}.pair,.tile,tr{break-inside:avoid}.scroll{overflow:visible}section+section{margin-top:1.75rem}
.pair{grid-template-columns:minmax(0,2fr) minmax(0,3fr)}.pair.alone{grid-template-columns:minmax(0,1fr)}
.tiles{grid-template-columns:repeat(auto-fit,minmax(9rem,1fr))}table{font-size:8pt}th,td{padding-right:.5rem}@page{margin:16mm}}
"""
