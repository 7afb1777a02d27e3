"""How text is split before merges: no token ever crosses one of these borders. And where long texts are cut.

Two patterns, each in two spellings. ``tokenizers`` has Oniguruma, which reads ``++`` and ``{1,3}+`` otherwise than
Rust's fancy-regex does, which ``tiktoken`` has; its possessive spellings backtrack less. Both split every text alike.

- GPT-2: Radford et al. 2019, ``encoder.py`` of openai/gpt-2.
- GPT-4: ``cl100k_base`` as first published in ``tiktoken_ext/openai_public.py`` of openai/tiktoken. Words of any case
  keep their contraction, digits come in threes, line breaks stay with the punctuation before them. (Later versions
  of tiktoken take all white space at the very end of a text as one piece; with that a text's tokens would depend on
  where its file ends.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["LONGEST", "PATTERNS", "in_pieces", "pattern_of", "pre_tokenizer"]

PATTERNS: dict[str, tuple[str, str]] = {
    "gpt2": (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    ),
    "gpt4": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]"
        r"|\s+(?!\S)|\s",
    ),
}
"""Name to its spelling for ``tokenizers`` and for ``tiktoken``."""

LONGEST = 1 << 20
"""Characters of the longest text that an encoder is given at once."""
_WINDOW = 1 << 16
"""Characters before the limit in which a place to cut is looked for."""
_BREAK = re.compile(r"(?<=\S)\n(?=\S)")
_SPACE = re.compile(r"(?<=\S) ")


def pre_tokenizer(split: str) -> dict[str, Any]:
    """The part of a ``tokenizer.json`` that splits by the pattern of this name."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if split == "gpt2":  # the pattern that ByteLevel has built in
        return level
    pattern = {"type": "Split", "pattern": {"Regex": PATTERNS[split][0]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pattern, level | {"use_regex": False}]}


def pattern_of(pre_tokenizer: Any) -> str | None:
    """The name of the pattern that this part of a ``tokenizer.json`` splits by; None if it is another one."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "gpt2" if pre_tokenizer.get("use_regex", True) else None
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if (behavior, invert) in (("Isolated", False), ("Removed", True)):  # the same, as nothing is between pieces
            return next((name for name, (spelling, _) in PATTERNS.items() if spelling == regex), None)
    return None


def in_pieces(text: str, longest: int = LONGEST) -> Iterator[str]:
    """The text in parts of at most ``longest`` characters; which parts depends on the text alone.

    A part ends after a line break that stands alone between two characters which are no white space; where there is
    none, before a space that follows such a character. Neither pattern's pieces ever cross these places, so the tokens
    are those of the whole text. The last such place in the 65,536 characters before the limit is taken; where there is
    none, e.g. in one enormous line without spaces, the part ends at the limit, and the word there comes in two halves.
    """
    start = 0
    while len(text) - start > longest:
        limit = start + longest
        # One character more: the pattern looks ahead.
        window = text[max(start, limit - _WINDOW) : limit + 1]
        ends = [m.end() for m in _BREAK.finditer(window)] or [m.start() for m in _SPACE.finditer(window)]
        end = limit + 1 - len(window) + ends[-1] if ends else limit
        yield text[start:end]
        start = end
    yield text[start:]
