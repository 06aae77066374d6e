"""The report: one HTML file that needs nothing but itself, with tables that sort and pictures inside it."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from pipeline.review.difference import Difference
from pipeline.review.effects import Effects
from pipeline.review.groups import Group
from pipeline.review.rows import number, written
from pipeline.review.terminal import heading, measured, remarks, row_names, same_in_all, usual_columns

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 1rem auto; padding: 0 1rem;
  max-width: 70rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; }
p, code { overflow-wrap: anywhere; } .quiet { color: #555; font-size: 0.9rem; }
.wide { overflow-x: auto; max-height: 75vh; border: 1px solid #ddd; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #e5e5e5; text-align: left; vertical-align: top; }
td { max-width: 24rem; overflow-wrap: anywhere; } td:first-child, .n { white-space: nowrap; }
th { position: sticky; top: 0; background: #f4f4f4; cursor: pointer; vertical-align: bottom; }
th[data-up]::after { content: " \\2193"; } th[data-up="1"]::after { content: " \\2191"; }
.n { text-align: right; } .best { background: #fdf3d0; font-weight: 600; }
.FAILED { color: #a40000; } .KILLED { color: #7a5200; }
"""
SCRIPT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const up = head.dataset.up === "1" ? -1 : 1, place = head.cellIndex, body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.cells) delete other.dataset.up;
  head.dataset.up = up;
  const value = row => { const text = row.cells[place].dataset.v ?? row.cells[place].textContent;
    return text === "" || isNaN(text) ? text : Number(text); };
  const compare = (a, b) => a === "" ? (b === "" ? 0 : 1) : b === "" ? -1 : typeof a === "number" &&
    typeof b === "number" ? up * (a - b) : up * String(a).localeCompare(String(b));
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
};
"""


def page(
    title: str,
    about: Sequence[str],
    groups: Sequence[Group],
    effects: Mapping[str, Effects],
    pictures: Mapping[str, Mapping[str, bytes]],
    difference: Difference | None = None,
    columns: Sequence[str] = (),
) -> str:
    """The whole file. `effects` and `pictures` (PNG by name) are by the names of groups; `about` are lines of text."""
    body = [f"<h1>{escape(title)}</h1>", *(f'<p class="quiet">{escape(line)}</p>' for line in about)]
    for group in groups:
        body += _group(group, columns)
        if found := effects.get(group.name):
            body += _effects(found)
        for name, picture in pictures.get(group.name, {}).items():
            source = f"data:image/png;base64,{b64encode(picture).decode()}"
            body.append(f'<p><img alt="{escape(f"{name} of {group.name}")}" src="{source}"></p>')
    if difference:
        body += _difference(difference)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def _group(group: Group, columns: Sequence[str]) -> list[str]:
    told = [f"<h2>{escape(heading(group))}</h2>"]
    if group.sentence:
        told.append(f"<p><b>* {escape(group.sentence)}</b></p>")
    if same := same_in_all(group):
        told.append(f'<p class="quiet">The same in all: {escape(", ".join(f"{k} {v}" for k, v in same.items()))}</p>')
    keys = list(columns) or usual_columns(group)
    rows = []
    for name, row in zip(row_names(group), group.rows, strict=True):
        cells = [_cell(f"{name} *" if row is group.best else name, title=f"{row.name}, {row.run_id}")]
        cells += [_cell(written(key, row.fields.get(key)), row.fields.get(key)) for key in keys]
        rows.append(_row(cells, " ".join(["best"] * (row is group.best) + [row.status])))
    return told + (_table(["run", *keys], rows) if rows else [])


def _effects(effects: Effects) -> list[str]:
    rows = []
    for effect in effects.effects:
        for level in effect.levels:
            rho = "" if math.isnan(effect.rank_correlation) else f"{effect.rank_correlation:+.2f}"
            share = "" if math.isnan(effect.explained) else f"{effect.explained:.0%}"
            cells = [_cell(effect.key), _cell(level.value, level.value), _cell(str(level.count), level.count)]
            cells += [_cell(measured(level.mean, level.error), level.mean), _cell(share, effect.explained), _cell(rho)]
            rows.append(_row(cells))
    heads = ["key", "value", "trials", "mean ± standard error", "share of the variance", "rank correlation"]
    told = [f"<h3>Effects on {escape(effects.metric)}, over the other keys</h3>", *_table(heads, rows)]
    return told + [f'<p class="quiet">{escape(remark)}</p>' for remark in remarks(effects)]


def _difference(found: Difference) -> list[str]:
    one, other = (escape(name) for name in found.runs)
    told = ["<h2>Two runs</h2>", f"<p>A: {one}<br>B: {other}</p>"]
    rows = []
    for section in (found.configuration, found.surroundings, found.metrics):
        for key, pair in section.items():
            rows.append(_row([_cell(key), *(_cell("-" if v is None else written(key, v), v) for v in pair)]))
    return told + _table(["key", "A", "B"], rows)


def _table(heads: Sequence[str], rows: Sequence[str]) -> list[str]:
    titles = "".join(f"<th>{escape(head).replace('/', '/<wbr>').replace('.', '.<wbr>')}</th>" for head in heads)
    titles = titles.replace("_", "_<wbr>")
    return [
        '<div class="wide"><table>', f"<thead><tr>{titles}</tr></thead>", "<tbody>", *rows, "</tbody></table></div>",
    ]  # fmt: skip


def _row(cells: Sequence[str], kind: str = "") -> str:
    return f'<tr class="{kind}">{"".join(cells)}</tr>' if kind else f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, value: object = None, title: str = "") -> str:
    told = number(value)
    data = "" if told is None else f' class="n" data-v="{told!r}"'
    more = f' title="{escape(title)}"' if title else ""
    return f"<td{data}{more}>{escape(text)}</td>"
