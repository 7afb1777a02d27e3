"""What wikitext loses before it is parsed: templates, tables, references and comments, found by their brackets.

The parser would find them as well, but it makes an object of everything inside, and tries each bracket that is never
closed up to the end of the page: pages of tables take it fifty times as long, whole pages about twice.
"""

from __future__ import annotations

import re

__all__ = ["without_brackets"]

_TOKEN = re.compile(
    r"""(?P<alone> <!--.*?(?:-->|\Z) | <ref\s[^<>]*/> | \{\{\{[^{}\n]*\}\}\} )
      | (?P<open>  \{\{ | ^[:*\ \t]*\{\| | <ref(?:\s[^<>]*[^<>/])?> )
      | (?P<close> \}\} | ^[ \t]*\|\}(?!\}) | </ref\s*> )
      | <(?P<literal>nowiki|pre|math|syntaxhighlight|source)\b[^<>]*(?<!/)>.*?</(?P=literal)\s*>""",
    re.VERBOSE | re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_OPENED_BY = {"}": "{{", "|": "{|", "<": "<r"}


def without_brackets(markup: str) -> str:
    """The markup without templates, tables, references and comments, however they are nested; of those that are never
    closed the opening bracket alone goes, of a table its whole line."""
    opened: list[tuple[str, int, int]] = []  # which, where it begins, where the rest of the page goes on
    gone: list[tuple[int, int]] = []
    for token in _TOKEN.finditer(markup):
        if token["alone"]:
            gone.append(token.span())
        elif token["open"]:
            bracket = token["open"].lstrip(":* \t")
            start = token.end() - len(bracket)
            opened.append((bracket[:2].lower(), start, token.end()))
        elif token["close"]:
            wanted = _OPENED_BY[token["close"].lstrip()[0]]
            for i in range(len(opened) - 1, -1, -1):
                if opened[i][0] == wanted:
                    gone.append((opened[i][1], token.end()))
                    gone += _never_closed(markup, opened[i + 1 :])
                    del opened[i:]
                    break
    gone += _never_closed(markup, opened)
    kept: list[str] = []
    place = 0
    for start, end in sorted(gone):
        if end > place:
            kept.append(markup[place : max(start, place)])
            place = end
    return "".join([*kept, markup[place:]])


def _never_closed(markup: str, opened: list[tuple[str, int, int]]) -> list[tuple[int, int]]:
    line_ends = (markup.find("\n", end) for _, _, end in opened)
    return [
        (start, (len(markup) if line < 0 else line) if bracket == "{|" else end)
        for (bracket, start, end), line in zip(opened, line_ends, strict=True)
    ]
