"""Characters as tokens: the alphabet of the text, and errors that name a character outside it."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bonsaigpt.data.tokenizers.base import PieceTokenizer, smallest_dtype
from bonsaigpt.errors import CheckpointError, DataError, TokenizerError

__all__ = ["CHARACTERS_APART", "CharTokenizer", "closest_characters", "of_single_characters"]

CHARACTERS_APART = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
"""How a ``tokenizer.json`` of Hugging Face's says that every character is a word."""


class CharTokenizer(PieceTokenizer):
    """One id for each distinct character, in code-point order (nanoGPT's and minGPT's character models), and after them
    the special tokens, if there are any."""

    kind = "chars"

    def __init__(self, characters: Iterable[str], special: Sequence[str] = ()) -> None:
        self.characters = sorted(set(characters))
        if not self.characters:
            raise DataError("a character tokenizer needs at least one character: the text is empty")
        self.vocab_size = len(self.characters) + len(special)
        self.special_tokens = {text: len(self.characters) + n for n, text in enumerate(special)}
        self._pieces = [c.encode("utf-8", errors="surrogatepass") for c in self.characters] + [b""] * len(special)
        codes = np.array([ord(c) for c in self.characters])
        # One table look-up per character, over the code points that occur; -1 marks the unknown.
        self._table = np.full(int(codes.max()) + 2, -1, dtype=np.int32)
        self._table[codes] = np.arange(len(self.characters))

    def encode(self, text: str) -> np.ndarray:
        """One id for each character."""
        if text.isascii():  # a quarter of the memory traffic of the general way
            codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        ids = self._table[np.minimum(codes, np.uint32(self._table.size - 1))]
        if ids.size and ids.min() < 0:
            raise self._unknown(text, int(np.argmin(ids)))
        return ids.astype(smallest_dtype(self.vocab_size))

    def _unknown(self, text: str, index: int) -> TokenizerError:
        character = text[index]
        name = unicodedata.name(character, f"U+{ord(character):04X}")
        near = closest_characters(character, self.characters)
        hint = f" The closest it knows: {', '.join(repr(c) for c in near)}." if near else ""
        return TokenizerError(
            f"the character {character!r} ({name}) at position {index} is not among the {len(self.characters)} "
            f"characters this model was trained on.{hint}"
        )

    def to_json(self) -> str:
        """The kind, the alphabet, and the special tokens, if there are any."""
        special = {"special": list(self.special_tokens)} if self.special_tokens else {}
        return json.dumps({"kind": self.kind, "characters": "".join(self.characters)} | special)


def of_single_characters(data: dict[str, Any], *, origin: str) -> CharTokenizer:
    """The tokenizer of a ``tokenizer.json`` whose model is WordLevel, if its words are what `bonsai export` writes.

    Raises:
        CheckpointError: they are not: longer, in another order, or found in another way.
    """
    special: dict[str, int] = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
    words: dict[str, int] = {word: index for word, index in data["model"]["vocab"].items() if word not in special}
    plain = data.get("pre_tokenizer") == CHARACTERS_APART and data.get("normalizer") is None
    if plain and all(len(word) == 1 for word in words):
        made = CharTokenizer(words, sorted(special, key=special.__getitem__))
        if {c: index for index, c in enumerate(made.characters)} | made.special_tokens == words | special:
            return made
    raise CheckpointError(
        f"{origin} cannot be used: it is a list of words (WordLevel), of which only single characters in the order of "
        "their code points can, as bonsai export writes them"
    )


_TYPOGRAPHY = dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»", "\"'") | dict.fromkeys("‐‑‒–—―−", "-")
"""What a typesetter makes of the keyboard's characters; Unicode has no decomposition for these."""


def closest_characters(character: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The characters of ``known`` most like an unknown one: other case, without accents, or of a similar name."""
    plain = unicodedata.normalize("NFKD", character) + _TYPOGRAPHY.get(character, "")
    wanted = [character.swapcase(), *plain, *plain.swapcase()]
    near = [c for c in dict.fromkeys(wanted) if c in known]
    names = {unicodedata.name(c, ""): c for c in known}
    names.pop("", None)
    alike = difflib.get_close_matches(unicodedata.name(character, ""), names, n=count, cutoff=0.5)
    return list(dict.fromkeys([*near, *(names[n] for n in alike)]))[:count]
