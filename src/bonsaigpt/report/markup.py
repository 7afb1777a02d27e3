"""The few pieces of HTML that both pages are made of. Whatever a function takes as text, it escapes."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from urllib.parse import quote

from bonsaigpt import __version__

__all__ = ["Bar", "bars", "document", "figures", "legend", "panel", "settings_table", "swatch", "table", "text"]

_CONTROLS = {c: chr(0x2400 + c) for c in range(32) if chr(c) not in "\n\t"}


def text(value: object) -> str:
    """Escaped. Control characters, which a young byte model likes to write, become visible; lone surrogates go."""
    return html.escape(str(value).translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8"))


def document(title: str, body: str) -> str:
    """A whole page. Its content policy forbids scripts and every request, whatever came in from files."""
    style = resources.files(__package__ or "").joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer>Made by BonsaiGPT {text(__version__)}. This page needs no network and runs no script.</footer>
</body>
</html>
"""


def figures(entries: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: what it is, the number, and a word on it."""
    cells = [
        f"<div><dt>{text(name)}</dt><dd>{text(number)}{f'<small>{text(word)}</small>' if word else ''}</dd></div>"
        for name, number, word in entries
    ]
    return f'<dl class="figures">{"".join(cells)}</dl>'


def panel(title: str, note: str, *drawings: str) -> str:
    """A chart with its heading and a line of HTML below; of two drawings the second is for narrow screens."""
    if len(drawings) == 2:
        drawings = (f'<div class="broad">{drawings[0]}</div>', f'<div class="narrow">{drawings[1]}</div>')
    caption = f"<figcaption>{note}</figcaption>" if note else ""
    return f"<figure><h3>{text(title)}</h3>{''.join(drawings)}{caption}</figure>"


def legend(names: Sequence[str]) -> str:
    """A legend: the name of each curve in its colour."""
    return '<p class="legend">' + " ".join(f"<span>{swatch(i)}{text(n)}</span>" for i, n in enumerate(names)) + "</p>"


def swatch(colour: int) -> str:
    """A short line in a curve's colour, dashed from the ninth on."""
    dashed = " dashed" if colour > 7 else ""
    return f'<i class="swatch{dashed}" style="color: var(--c{colour % 8})"></i>'


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, swatches: bool = False, links: Sequence[str] = ()
) -> str:
    """Rows with their names in the first column, which may carry the colours of the curves, and where they lead to."""
    head = "".join(f'<th scope="col">{text(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{swatch(i) if swatches else ""}{_linked(row[0], links[i] if links else "")}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for i, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _linked(words: str, target: str) -> str:
    """``target`` is a path relative to the page; empty for none."""
    return f'<a href="./{text(quote(target))}">{text(words)}</a>' if target else text(words)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of ``bars``."""

    name: str
    segments: Sequence[tuple[str, float, str]]
    """Colour (CSS), length (the whole track is 1) and what it is, from the left."""
    ticks: Sequence[tuple[float, str]] = ()
    """Places on the track that are marked, and what they are."""
    cells: Sequence[str] = ()
    """Figures beside it."""
    hint: str = ""
    colour: str = ""
    """Of a square before the name, where the rows are a legend."""


def bars(header: Sequence[str], rows: Iterable[Bar]) -> str:
    """Horizontal bars with names before them and figures after them; ``header`` is of the figures."""
    head = '<th></th><td class="bar"></td>' + "".join(f'<th scope="col">{text(h)}</th>' for h in header)
    body = ""
    for row in rows:
        square = f'<i class="square" style="background: {text(row.colour)}"></i>' if row.colour else ""
        parts = "".join(
            f'<i style="background: {text(colour)}; width: {100 * length:.3f}%" title="{text(hint)}"></i>'
            for colour, length, hint in row.segments
            if length > 0.002
        )
        parts += "".join(f'<b style="left: {100 * at:.3f}%" title="{text(hint)}"></b>' for at, hint in row.ticks)
        title = f' title="{text(row.hint)}"' if row.hint else ""
        body += (
            f'<tr><th scope="row"{title}>{square}{text(row.name)}</th><td class="bar"><div>{parts}</div></td>'
            + "".join(f"<td>{text(cell)}</td>" for cell in row.cells)
            + "</tr>\n"
        )
    inner = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="bars">{inner}</table></div>'


def settings_table(title: str, rows: Iterable[tuple[str, str, str, bool]]) -> str:
    """Names and values under a heading; a row has a hint and says whether it is to stand out."""
    body = ""
    for name, value, hint, stands_out in rows:
        mark = ' class="set"' if stands_out else ""
        title_of = f' title="{text(hint)}"' if hint else ""
        body += f'<tr{mark}><th scope="row"{title_of}>{text(name)}</th><td>{text(value)}</td></tr>\n'
    return f'<section class="settings"><h3>{text(title)}</h3><table><tbody>{body}</tbody></table></section>'
