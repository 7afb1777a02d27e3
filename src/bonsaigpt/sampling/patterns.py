"""Texts that follow a regular expression or a JSON schema: which tokens may come next, by llguidance.

The library walks the pattern and the vocabulary's bytes together, so a token may end inside a character, span several
parts of the pattern, or be of any tokenizer's making.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bonsaigpt.errors import DeviceError, GenerateError
from bonsaigpt.sampling.chooser import Constraint

__all__ = ["Pattern", "json_schema", "regular_expression"]


class Pattern:
    """A compiled pattern over one vocabulary; every text begins it anew with ``start``.

    Args:
        grammar: in llguidance's Lark syntax.
        what: names it in errors.
    """

    def __init__(self, grammar: str, pieces: Sequence[bytes], *, what: str) -> None:
        # Left to itself, the library lets text that the pattern forces come in the tokenizer's own tokens only; here
        # the model may write it in any.
        grammar = f'%llguidance {{ "no_forcing": true }}\n{grammar}'
        self._fresh = _library().LLMatcher(_vocabulary(pieces), grammar, log_level=0)
        if self._fresh.is_error():
            raise GenerateError(f"{what} cannot be used: {_first_words(self._fresh.get_error())}")
        self._vocab_size = len(pieces)
        start = self.start()
        if not start.is_done() and not start.allowed().any():
            raise GenerateError(
                f"no token of the vocabulary can begin {what}: it asks for characters that this model does not know"
            )

    def start(self) -> Constraint:
        """The place before the first token."""
        return _Place(self._fresh.deep_copy(), self._vocab_size)


def regular_expression(pattern: str, pieces: Sequence[bytes]) -> Pattern:
    """A regular expression in Rust's syntax that the whole text must match: no look-around, no backreferences.

    Args:
        pieces: the bytes that each token id stands for, (V,); none for special tokens, which are never allowed.

    Raises:
        GenerateError: it is malformed, or no token can begin it.
        DeviceError: llguidance is not installed.
    """
    compiled = json.loads(_library().LLMatcher.grammar_from_regex(pattern))
    return Pattern(compiled["grammars"][0]["lark_grammar"], pieces, what=f"the pattern {pattern!r}")


def json_schema(schema: str, pieces: Sequence[bytes], *, origin: str) -> Pattern:
    """A JSON value that fits a JSON schema, written without free white space: a small model would never leave it.

    Args:
        schema: the schema's own JSON text, from ``origin`` (named in errors).
        pieces: as for ``regular_expression``.

    Raises:
        GenerateError: it is no JSON or no schema, uses what llguidance does not support, or no token can begin it.
        DeviceError: llguidance is not installed.
    """
    library = _library()
    what = f"the JSON schema in {origin}"
    try:
        asked = json.loads(schema)
    except ValueError as error:
        raise GenerateError(f"{what} is not JSON: {error}") from None
    if isinstance(asked, bool):  # schemas too: everything fits, nothing does
        if not asked:
            raise GenerateError(f"{what} is `false`, which no value fits: use another")
        schema = "{}"
    try:
        compiled = json.loads(
            library.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        )
    except ValueError as error:
        raise GenerateError(f"{what} cannot be used: {_first_words(str(error))}") from None
    return Pattern(f"start: %json {json.dumps(compiled['grammars'][0]['json_schema'])}", pieces, what=what)


class _Place:
    """A place in a pattern; see ``Constraint``."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._allowed: np.ndarray | None = None

    def allowed(self) -> np.ndarray:
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._allowed = np.unpackbits(bits, bitorder="little", count=self._vocab_size).view(bool)
        return self._allowed

    def advance(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise GenerateError(f"the pattern cannot go on with token {token}: {self._matcher.get_error()[:80]}")
        self._allowed = None

    def is_done(self) -> bool:
        return self._matcher.is_accepting()


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise DeviceError(
            "patterns and JSON schemas need the package llguidance: pip install 'bonsaigpt[constrain]'"
        ) from None


def _vocabulary(pieces: Sequence[bytes]) -> Any:
    """The library's view of a vocabulary, with one more token: it insists on an end of text."""

    class Words:
        eos_token_id = len(pieces)
        bos_token_id = None
        # A special token stands for no text; here it needs a name, which no pattern can ask for.
        tokens = [piece or b"\xff<%d>" % i for i, piece in enumerate([*pieces, b""])]  # noqa: RUF012
        special_token_ids = [i for i, piece in enumerate([*pieces, b""]) if not piece]  # noqa: RUF012

        def __call__(self, text: str) -> list[int]:
            return []  # asked for forced text alone

    library = _library()
    return library.LLTokenizer(library.TokenizerWrapper(Words()), slices=[])


def _first_words(message: str) -> str:
    """The library's message, without its drawing of the place and on one line."""
    lines = [line.strip() for line in message.splitlines()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    # What is left of the grammar that we wrote around the pattern would tell the user nothing.
    return told[0] if told else " ".join(itertools.takewhile(lambda line: "%llguidance" not in line, lines))[:200]
