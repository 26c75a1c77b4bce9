"""Style sheet of REPORT.html: light, readable on a phone, on a wide screen and on paper."""

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #e1e6eb; --tint: #f5f7fa; --accent: #0b5fa5;
  --good: #046c4e; --warn: #92400e; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header.page, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header.page { padding-top: 40px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 0 0 4px; line-height: 1.3; }
h3 { font-size: 1rem; margin: 28px 0 8px; }
p { margin: 8px 0; max-width: 76ch; }
.lead, .muted { color: var(--soft); }
.small { font-size: .875rem; }
.badge { display: inline-block; padding: 2px 10px; border-radius: 999px; font-size: .8rem; font-weight: 600;
  vertical-align: middle; background: #fef3c7; color: var(--warn); white-space: nowrap; }
.badge.finished { background: #d1fae5; color: var(--good); }
.notice { border-left: 4px solid #d97706; background: #fffbeb; padding: 10px 16px; margin: 20px 0; border-radius: 4px; }
.notice ul { margin: 6px 0; padding-left: 20px; }
nav.contents { margin: 18px 0 0; font-size: .9rem; }
nav.contents a { margin-right: 16px; white-space: nowrap; }
a { color: var(--accent); text-underline-offset: 2px; }
section { padding-top: 26px; margin-top: 34px; border-top: 1px solid var(--line); }
.scroll { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid #cbd2d9; }
th:first-child, td:first-child, .left { text-align: left; }
td.wrap { white-space: normal; }
tbody th { color: var(--ink); border-bottom: 1px solid var(--line); }
.compact table { width: auto; min-width: min(100%, 560px); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr));
  gap: 10px; margin: 16px 0; padding: 0; }
.facts div { background: var(--tint); border-radius: 8px; padding: 10px 14px; }
.facts dt { font-size: .78rem; color: var(--soft); }
.facts dd { margin: 2px 0 0; font-size: 1.1rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts dd small { font-weight: 400; font-size: .78rem; color: var(--soft); display: block; }
figure { margin: 26px 0 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
figure.pair { display: grid; grid-template-columns: minmax(0, 3fr) minmax(220px, 2fr);
  gap: 4px 24px; align-items: start; }
figure.pair h3 { grid-column: 1 / -1; }
figure h3 { margin: 0 0 8px; }
figcaption { font-size: .9rem; color: var(--soft); max-width: 76ch; margin-top: 8px; }
figure.pair figcaption { margin-top: 0; }
figcaption b { color: var(--ink); }
.bar { display: flex; height: 14px; min-width: 3px; border-radius: 3px; overflow: hidden; }
.bar span { display: block; height: 100%; }
.times td:nth-child(2) { width: 60%; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 14px; }
.key:first-child { margin-left: 0; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--accent); }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--tint); padding: 1px 5px;
  border-radius: 3px; overflow-wrap: anywhere; }
footer { margin-top: 44px; padding-top: 16px; padding-bottom: 40px; border-top: 1px solid var(--line);
  color: var(--soft); font-size: .85rem; }
@media screen and (max-width: 760px) { figure.pair { display: block; } figure.pair figcaption { margin-top: 8px; }
  main, header.page, footer { padding-left: 16px; padding-right: 16px; } }
@page { margin: 14mm; }
@media print { body { font-size: 9.5pt; line-height: 1.4; } main, header.page, footer { max-width: none; padding: 0; }
  h1 { font-size: 18pt; } h2, h3 { break-after: avoid; } section { padding-top: 12px; margin-top: 16px; }
  nav.contents { display: none; } section.stage { break-before: page; border-top: 0; margin-top: 0; }
  table { font-size: 7pt; } th, td { padding: 4px; } .scroll { overflow: visible; }
  .facts { grid-template-columns: repeat(5, 1fr); gap: 6px; } .facts div { padding: 6px 8px; break-inside: avoid; }
  .facts dd { font-size: 10pt; } .facts dt, .facts dd small { font-size: 7pt; }
  .facts div, .bar span, .key, .badge, .notice { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  figure { margin-top: 14px; } figure img { max-height: 150mm; } figcaption { font-size: 8.5pt; }
  figure.pair { grid-template-columns: auto minmax(50mm, 1fr); }
  figure.pair img { max-width: 115mm; max-height: 135mm; } }
"""
