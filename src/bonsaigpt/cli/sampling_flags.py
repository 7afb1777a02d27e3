"""The flags of the rules of sampling and of patterns, for the verbs that make text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bonsaigpt.cli.common import Parser
from bonsaigpt.config import KVConfig
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import ConfigError, GenerateError
from bonsaigpt.kv import read_policy
from bonsaigpt.sampling import Pattern, Sampling, json_schema, regular_expression

__all__ = [
    "RULES",
    "add_context",
    "add_kv",
    "add_patterns",
    "add_rules",
    "pattern_of",
    "refuse_together",
    "sampling_of",
]

_NOT_GIVEN: tuple[object, ...] = (None, [])
"""What a flag is that nobody gave."""

RULES = {
    "temperature": ("T", float, "0 is greedy, 1 the model's own (default: 0.8)"),
    "top_k": ("K", int, "draw from the K likeliest tokens only"),
    "top_p": ("P", float, "draw from the likeliest tokens of total probability P"),
    "min_p": ("P", float, "draw from tokens with at least P times the likeliest one's probability"),
    "typical_p": ("P", float, "draw from the tokens of least unusual surprise, of total probability P"),
    "repetition_penalty": ("F", float, "above 1: make all tokens of prompt and text less likely (default: 1)"),
    "frequency_penalty": ("NATS", float, "taken from a token's logit for each time it was written (default: 0)"),
    "presence_penalty": ("NATS", float, "taken from a token's logit once it was written (default: 0)"),
}
"""Flag by name of the setting: what its value is called, its type, its help."""


def add_rules(parser: Parser) -> None:
    """Add a flag for every rule, and the seed."""
    group = parser.add_argument_group("rules of sampling", "They act in this order; see docs/sampling.md.")
    for name in [n for n in RULES if n.endswith("penalty")]:
        _add_rule(group, name)
    group.add_argument(
        "--logit-bias",
        action="append",
        default=[],
        metavar="ID=NATS",
        help="added to a token's logit; -100 forbids it; can be repeated",
    )
    for name in [n for n in RULES if not n.endswith("penalty")]:
        _add_rule(group, name)
    group.add_argument("--seed", type=int, help="same seed, same text (default: 0)")


def _add_rule(group: argparse._ArgumentGroup, name: str) -> None:
    value, kind, words = RULES[name]
    group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=value, help=words)


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """The rules that the flags ask for.

    Raises:
        GenerateError: a value that cannot be.
    """
    given: dict[str, Any] = {name: getattr(arguments, name) for name in RULES if getattr(arguments, name) is not None}
    bias: dict[int, float] = {}
    for entry in arguments.logit_bias:
        token, _, nats = entry.partition("=")
        try:
            number, added = int(token), float(nats)
        except ValueError:
            raise GenerateError(f"--logit-bias {entry} is no ID=NATS: write e.g. --logit-bias 13=-100") from None
        if number in bias:
            raise GenerateError(f"--logit-bias {entry} is the second one of token {number}: give one")
        bias[number] = added
    try:
        return Sampling(**{"temperature": 0.8, **given}, logit_bias=bias, seed=arguments.seed or 0)
    except GenerateError as error:
        name, _, rest = str(error).partition(" = ")
        raise GenerateError(f"--{name.replace('_', '-')} {rest}" if name in RULES else str(error)) from None


def add_patterns(parser: Parser) -> None:
    """Add --pattern and --json-schema."""
    group = parser.add_argument_group(
        "patterns", "The new text must match as a whole; needs pip install 'bonsaigpt[constrain]'."
    )
    group.add_argument("--pattern", metavar="REGEX", help="a regular expression (no look-around, no backreferences)")
    group.add_argument("--json-schema", type=Path, metavar="FILE", help="a JSON schema: the text is a value that fits")


def pattern_of(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Pattern | None:
    """The pattern that the flags ask for.

    Raises:
        GenerateError: both were given; it is malformed; the file cannot be read; no token can begin it.
        DeviceError: the package that it needs is missing.
    """
    refuse_together(arguments, ["pattern", "json_schema"])
    if arguments.pattern is None and arguments.json_schema is None:
        return None
    pieces = [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]
    if arguments.pattern is not None:
        return regular_expression(arguments.pattern, pieces)
    file = arguments.json_schema
    try:
        schema = file.read_text(encoding="utf-8")
    except OSError as error:
        raise GenerateError(f"the schema {file} cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeError:
        raise GenerateError(f"the schema {file} is not UTF-8 text: convert it, e.g. with iconv.") from None
    return json_schema(schema, pieces, origin=str(file))


def add_context(parser: Parser) -> None:
    """Add --overflow, --slide, --weights and --kv."""
    parser.add_argument(
        "--overflow",
        choices=["slide", "error"],
        default="slide",
        help="past the block size: let the context slide, or refuse (default: slide)",
    )
    parser.add_argument(
        "--slide",
        type=int,
        metavar="N",
        help="tokens dropped at once when sliding (default: an eighth of the block)",
    )
    parser.add_argument(
        "--weights", choices=["fp32", "int8"], default="fp32", help="how weights are held (default: fp32)"
    )
    add_kv(parser)


def add_kv(parser: Parser) -> None:
    """Add --kv."""
    parser.add_argument(
        "--kv",
        type=_policy,
        metavar="POLICY",
        help='what the key/value cache keeps, e.g. "sinks(4)+window(60), int4"; see docs/kv.md (default: everything)',
    )


def _policy(text: str) -> KVConfig:
    try:
        return read_policy(text)
    except ConfigError as error:  # argparse would say less
        raise argparse.ArgumentTypeError(str(error)) from None


def refuse_together(arguments: argparse.Namespace, names: Sequence[str], *, why: str = "choose one") -> None:
    """Refuse more than one of these flags.

    Raises:
        GenerateError: naming the first two that were given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) not in _NOT_GIVEN]
    if len(given) > 1:
        raise GenerateError(f"{given[0]} and {given[1]} cannot go together: {why}")
