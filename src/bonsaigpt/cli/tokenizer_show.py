"""`bonsai tokenizer show`: a text as the model sees it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from bonsaigpt.cli.common import Parser, named_tokenizer, runs_folder
from bonsaigpt.data.corpora.document import read_document
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import BonsaiError

__all__ = ["run"]

_EXAMPLE = """  bonsai tokenizer show "A bonsai is pruned." --tokenizer runs/mine
  bonsai tokenizer show --file poem.txt --tokenizer tokenizer.json --no-color"""
_COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
_SIGNS = {"\n": "↵\n", "\t": "⇥", "\r": "␍"}


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("tokenizer show", "Draw the pieces of a text in alternating colours, and their ids.", _EXAMPLE)
    parser.add_argument("text", nargs="?", help="the text; - reads standard input")
    parser.add_argument("--file", type=Path, help="the text is in this UTF-8 file")
    parser.add_argument(
        "--tokenizer",
        default="bytes",
        metavar="ADDRESS",
        help="a run, a corpus, a tokenizer.json, a folder of GPT-2's, or bytes (default: bytes)",
    )
    parser.add_argument("--no-ids", action="store_true", help="the pieces alone")
    parser.add_argument("--no-color", action="store_true", help="separate pieces by │ instead of colours")
    runs_folder(parser)
    arguments = parser.parse(argv)
    if (arguments.text is None) == (arguments.file is None):
        raise BonsaiError("give a text, or --file FILE: one of the two.")
    tokenizer = named_tokenizer(arguments.tokenizer, arguments.runs)
    if arguments.file:
        text = read_document(arguments.file).text
    else:
        text = _standard_input() if arguments.text == "-" else arguments.text
    console = Console(highlight=False, soft_wrap=True, no_color=True if arguments.no_color else None)
    coloured = console.color_system is not None and not console.no_color
    ids = tokenizer.encode(text).tolist()
    console.print(_joined(pieces_for_people(tokenizer, ids), coloured, "│"), soft_wrap=True)
    if not arguments.no_ids:
        console.print(_joined([str(i) for i in ids], coloured, " "), soft_wrap=True)
    size = len(text.encode("utf-8", errors="surrogatepass"))
    rate = f", {size / len(ids):.2f} bytes a token" if ids else ""
    console.print(f"{len(ids):,} tokens, {size:,} bytes{rate}")
    return 0


def pieces_for_people(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token's text with control characters visible; bytes that are no whole character as hexadecimal digits."""
    pieces = tokenizer.pieces()
    special = {index: text for text, index in tokenizer.special_tokens.items()}
    return [special[i] if i in special else visible(pieces[i]) for i in ids]


def visible(piece: bytes) -> str:
    """A piece of text as it can be printed; a line break is shown and made."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        # Part of a character, perhaps with whole ones around it.
        return "".join(chr(b) if 0x20 <= b < 0x7F else f"<{b:02X}>" for b in piece)
    return "".join(_SIGNS.get(c) or (c if c.isprintable() else f"<U+{ord(c):04X}>") for c in text)


def _joined(words: Sequence[str], coloured: bool, between: str) -> Text:
    if not coloured:
        return Text(between.join(words))
    drawn = Text()
    for number, word in enumerate(words):
        drawn.append(word, style=_COLOURS[number % len(_COLOURS)])
        if between == " ":
            drawn.append(" ")
    return drawn


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BonsaiError(f"standard input is not UTF-8 (byte {error.start}): convert it with iconv.") from None
