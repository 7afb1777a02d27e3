"""`bonsai study`: experiments by name, one file each."""

from __future__ import annotations

from importlib import import_module

from bonsaigpt.cli.common import Parser

__all__ = ["run"]

_STUDIES = {
    "batch": "many short sequences in a step, or few long ones: loss, time and memory of pairs with equal tokens",
    "compress": "which structure a run should be stored in: loss, size and speed at equal values, healed or not",
    "context": "how far a model reads past the context it was trained at, what helps, and how many steps that takes",
    "kv": "what the key/value cache costs: bits held against loss of many policies, and a search within a budget",
    "lr": "the learning rate: short trainings at several multiples of the recipe's, and the flags to type",
}

_EXAMPLE = """  bonsai study batch shakespeare-char --seeds 3
  bonsai study lr shakespeare-char --seeds 3
  bonsai study context short long
  bonsai study kv runs/shakespeare-char --max-loss 0.05
  bonsai study compress runs/shakespeare-char --seeds 5"""


def run(argv: list[str]) -> int:
    """The verb: hands the rest of the line to ``bonsaigpt.cli.study_NAME``."""
    listed = "\n".join(f"  {name:10}{what}" for name, what in _STUDIES.items())
    about = f"Experiments by name; `bonsai study NAME --help` tells all about one.\n\n{listed}"
    parser = Parser("study", about, _EXAMPLE)
    parser.add_argument("study", choices=list(_STUDIES), help="which experiment")
    name = parser.parse(argv[:1]).study
    return import_module(f"bonsaigpt.cli.study_{name}").run(argv[1:])
