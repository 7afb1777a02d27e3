"""`bonsai tokenizer report`: what tokenizers make of files, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console

from bonsaigpt.cli.common import Parser, named_tokenizer, print_table, progress_bar, runs_folder
from bonsaigpt.cli.tokenizer_texts import Texts, add_texts
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import BonsaiError, TokenizerError

__all__ = ["run"]

_EXAMPLE = """  bonsai tokenizer report my-texts --tokenizer tokenizer.json --tokenizer bytes
  bonsai tokenizer report valid.txt --tokenizer runs/a --tokenizer gpt2-folder --json"""


@dataclass
class _Side:
    """One tokenizer, and what it made of the files."""

    name: str
    tokenizer: Tokenizer
    used: np.ndarray
    """How often each id came up, (V,)."""
    seconds: float = 0.0
    tokens: list[int] = field(default_factory=list)
    """Of each file."""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("tokenizer report", "Hold tokenizers against each other on text files.", _EXAMPLE)
    add_texts(parser)
    parser.add_argument(
        "--tokenizer",
        action="append",
        required=True,
        metavar="ADDRESS",
        help="a run, a corpus, a tokenizer.json, a folder of GPT-2's, or bytes; may be repeated",
    )
    parser.add_argument("--longest", type=int, default=5, help="how many of the longest tokens are shown (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    runs_folder(parser)
    arguments = parser.parse(argv)
    if arguments.longest < 0:
        raise BonsaiError(f"--longest {arguments.longest}: give 0 or more.")
    tokenizers = [(name, named_tokenizer(name, arguments.runs)) for name in arguments.tokenizer]
    sides = [_Side(name, t, np.zeros(t.vocab_size, dtype=np.int64)) for name, t in tokenizers]
    for side in sides:
        side.tokenizer.encode("")  # what is built at the first text is not in the seconds
    texts = Texts(arguments)
    texts.tell(Console(stderr=True))
    paths = texts.names
    with progress_bar(Console(stderr=True)) as advance:
        sizes = []
        for number, path in enumerate(paths):
            advance("encoding", number, len(paths))
            sizes.append(_encode(path, texts.documents(number), sides))
    texts.check(sum(sizes))
    figures = [_figures(side, paths, sizes, arguments.longest) for side in sides]
    if arguments.json:
        print(json.dumps({"files": dict(zip(paths, sizes, strict=True)), "tokenizers": figures}))
        return 0
    names = [side.name for side in sides]
    rows = [
        (path, f"{size:,}", *(_rate(size, side.tokens[number]) for side in sides))
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True))
    ]
    if len(paths) > 1:
        rows.append(("all", f"{sum(sizes):,}", *(_rate(sum(sizes), sum(side.tokens)) for side in sides)))
    print_table(("bytes a token", "bytes", *names), rows)
    print()
    lines = [
        ("tokens in the vocabulary", *(f"{f['vocab_size']:,}" for f in figures)),
        ("of them in these files", *(f"{f['used_share']:.1%}" for f in figures)),
        ("tokens of these files", *(f"{f['tokens']:,}" for f in figures)),
        ("encoded, MB/s in one thread", *(f"{f['megabytes_per_second']:.1f}" for f in figures)),
    ]
    for place in range(arguments.longest):
        word = "longest tokens of these files" if place == 0 else ""
        lines.append((word, *(repr(f["longest"][place]) if place < len(f["longest"]) else "" for f in figures)))
    print_table(("", *names), lines)
    return 0


def _encode(path: str, documents: Iterable[str], sides: list[_Side]) -> int:
    """Let each side encode the documents of a file; their bytes."""
    size = 0
    for side in sides:
        side.tokens.append(0)
    for part in documents:
        size += len(part.encode("utf-8", errors="surrogatepass"))
        for side in sides:
            began = time.perf_counter()
            try:
                ids = side.tokenizer.encode(part)
            except TokenizerError as error:
                raise TokenizerError(f"{path} cannot be encoded with {side.name}: {error}") from None
            side.seconds += time.perf_counter() - began
            side.tokens[-1] += len(ids)
            side.used += np.bincount(ids, minlength=side.tokenizer.vocab_size)
    return size


def _figures(side: _Side, paths: list[str], sizes: list[int], longest: int) -> dict[str, Any]:
    lengths = np.where(side.used > 0, side.tokenizer.token_bytes(), 0)
    order = np.argsort(-lengths, kind="stable")[:longest].tolist()
    tokens = sum(side.tokens)
    return {
        "tokenizer": side.name,
        "kind": side.tokenizer.kind,
        "vocab_size": side.tokenizer.vocab_size,
        "used_share": float((side.used > 0).mean()),
        "tokens": tokens,
        "bytes_per_token": sum(sizes) / tokens,
        "bytes_per_token_of_files": {p: s / t for p, s, t in zip(paths, sizes, side.tokens, strict=True) if t},
        "megabytes_per_second": sum(sizes) / side.seconds / 1e6,
        "longest": [side.tokenizer.decode([i]) for i in order if lengths[i]],
    }


def _rate(size: int, tokens: int) -> str:
    return f"{size / tokens:.2f}" if tokens else "no text"
