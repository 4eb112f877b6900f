"""How the report looks: one style sheet, light and dark by the reader's own setting, and fit to be printed."""

from __future__ import annotations

from typing import Final

CSS: Final = """
:root {
  color-scheme: light dark;
  --ink: #1c2430; --quiet: #5b6675; --paper: #fbfbfa; --panel: #ffffff; --rule: #dde1e6;
  --c0: #1f6fb2; --c1: #c8571b; --c2: #2a8a57; --c3: #8a4fb0; --c4: #b3305f; --c5: #7d6a00;
  --c6: #0f8a93; --c7: #5c6570;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6eaf0; --quiet: #9aa6b5; --paper: #14181e; --panel: #1b2129; --rule: #323b47;
    --c0: #6db3f2; --c1: #f0955c; --c2: #62c993; --c3: #c194e6; --c4: #f07fa8; --c5: #d6bf4a;
    --c6: #55cdd6; --c7: #a5aebb;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .25rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .25rem 0; color: var(--quiet); } nav a { margin-right: 1rem; color: var(--c0); }
a:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; }
svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; background: var(--panel); }
th, td { text-align: left; padding: .35rem .6rem; border: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
details summary { cursor: pointer; color: var(--quiet); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem .9rem; padding: 0; margin: .4rem 0 0;
  color: var(--quiet); font-size: .85rem; }
.legend svg { display: inline-block; width: 18px; height: 8px; vertical-align: middle; margin-right: .3rem; }
.key { width: 8px; height: 12px; display: inline-block; vertical-align: middle; }
.grid { stroke: var(--rule); stroke-width: 1; } .tick { fill: var(--quiet); font-size: 11px; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .dashed { stroke-dasharray: 5 3; }
.bar { fill: var(--c0); }
.line0 { stroke: var(--c0); } .line1 { stroke: var(--c1); } .line2 { stroke: var(--c2); } .line3 { stroke: var(--c3); }
.line4 { stroke: var(--c4); } .line5 { stroke: var(--c5); } .line6 { stroke: var(--c6); } .line7 { stroke: var(--c7); }
.mark { stroke-width: 1.5; stroke-dasharray: 2 3; opacity: .75; } .kind { font-weight: 600; }
.mark-deploy { stroke: var(--c2); } .mark-lost, .mark-restart { stroke: var(--c4); } .mark-start { stroke: var(--c6); }
.mark-overload { stroke: var(--c1); } .mark-alert { stroke: var(--c3); }
@media print { body { max-width: none; } figure { break-inside: avoid; } nav { display: none; } }
"""
