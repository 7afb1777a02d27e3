"""The contents of a byte-level ``tokenizer.json``: which bytes each id stands for, and how merges make them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from bonsaigpt.errors import CheckpointError

__all__ = ["Vocabulary", "byte_alphabet", "read_vocabulary"]

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""
_AROUND = ("normalizer", "pre_tokenizer", "decoder")


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level vocabulary."""

    pieces: list[bytes]
    """The bytes that each id stands for; none for special tokens."""
    special: dict[str, int]
    merges: list[tuple[bytes, bytes]]
    """Which two neighbours become one, the first rule first."""
    literal: bool
    """Whether some tokens are looked for in the text before it is split (added tokens that are not special)."""


def read_vocabulary(data: dict[str, Any], *, origin: str) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json`` of Hugging Face's ``tokenizers``.

    Raises:
        CheckpointError: it is no byte-level BPE, or damaged; the message says why ``origin`` cannot be used.
    """

    def refuse(why: str) -> CheckpointError:
        return CheckpointError(f"{origin} cannot be used: {why}. Only byte-level BPE as GPT-2's can.")

    model = data["model"]
    if model.get("byte_fallback") or _SPACE in json.dumps([data.get(part) for part in _AROUND], ensure_ascii=False):
        raise refuse("it is SentencePiece's (as Llama 2's and Mistral's), which puts a space before a text")
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise refuse(f"its model is {kind}")
    vocabulary: dict[str, int] = model["vocab"]
    added = {token["content"]: token for token in data.get("added_tokens") or []}
    special = {text: token["id"] for text, token in added.items() if token["special"]}
    literal = {text: token["id"] for text, token in added.items() if not token["special"]}
    ids = {**vocabulary, **special, **literal}
    if sorted(ids.values()) != list(range(len(ids))):
        raise refuse("its token ids have gaps or doubles, and must be 0, 1, 2, ...")
    alphabet = byte_alphabet()
    pieces = [b""] * len(ids)
    spelt: dict[str, bytes] = {}
    for token, index in vocabulary.items():
        if token in added:
            continue
        try:
            spelt[token] = pieces[index] = bytes([alphabet[character] for character in token])
        except KeyError as error:
            raise refuse(
                f"its token {token!r} (id {index}) has the character {error.args[0]!r}, which stands for no byte"
            ) from None
    for text, index in literal.items():
        pieces[index] = text.encode()
    if missing := [byte for character, byte in alphabet.items() if character not in spelt]:
        raise refuse(f"{len(missing)} of the 256 bytes are no token, e.g. 0x{missing[0]:02X}, so some text has none")
    merges: list[tuple[bytes, bytes]] = []
    for rule in model["merges"]:
        left, right = rule.split(" ") if isinstance(rule, str) else rule
        if left not in spelt or right not in spelt or left + right not in spelt:
            raise refuse(f"its merge of {left!r} and {right!r} is of or to a token that is not in the vocabulary")
        merges.append((spelt[left], spelt[right]))
    return Vocabulary(pieces, special, merges, bool(literal))


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character to byte. Printable bytes stand for themselves, the rest from U+0100."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
