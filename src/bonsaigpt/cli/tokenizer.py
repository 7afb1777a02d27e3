"""`bonsai tokenizer`: learn one, look at one, hold several against each other."""

from __future__ import annotations

from importlib import import_module

from bonsaigpt.cli.common import Parser

__all__ = ["run"]

_ACTIONS = {
    "train": "learn a byte-level BPE from text files, into one tokenizer.json",
    "show": "draw the pieces of a text in alternating colours, with their ids",
    "report": "bytes per token, use of the vocabulary, longest tokens, speed; of several tokenizers",
}

_EXAMPLE = """  bonsai tokenizer train my-texts --vocab 4096 -o tokenizer.json
  bonsai tokenizer show "A bonsai is pruned." --tokenizer tokenizer.json
  bonsai tokenizer report my-texts --tokenizer tokenizer.json --tokenizer bytes"""


def run(argv: list[str]) -> int:
    """The verb: hands the rest of the line to ``bonsaigpt.cli.tokenizer_ACTION``."""
    listed = "\n".join(f"  {name:8}{what}" for name, what in _ACTIONS.items())
    about = f"Tokenizers; `bonsai tokenizer ACTION --help` tells all about one.\n\n{listed}"
    parser = Parser("tokenizer", about, _EXAMPLE)
    parser.add_argument("action", choices=list(_ACTIONS), help="what to do")
    action = parser.parse(argv[:1]).action
    return import_module(f"bonsaigpt.cli.tokenizer_{action}").run(argv[1:])
