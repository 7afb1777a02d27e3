"""When merging by rank, as ``tiktoken`` does, gives the very tokens that merge rules give.

``tiktoken`` knows no rules: it joins whichever two neighbours *together* are the token of the lowest rank, and takes a
whole piece at once if that is a token. ``tokenizers`` joins only pairs that are a rule. They agree on every text if
each token of more than one byte

1. is made by exactly one rule, of two tokens that are bytes or were made by earlier rules, and
2. is what its own bytes become when the rules are applied to them.

Proof sketch: inside a stretch of text whose two borders no merge has crossed, merges go as if the stretch stood
alone. Say both ways have agreed so far and the next join of one of them makes token t of (x, y). Alone, t's bytes are
at (x, y) now and, by 2, must become t; with two tokens left only the rule of t can do that, so (x, y) is that rule.

Condition 2 is checked rule by rule without encoding: a join of (a, b) made at rank r can only be spoilt by an earlier
rule across the border between a and b, and the tokens that stand at that border over time are a's rightmost and b's
leftmost parts. GPT-2's 50,000 rules take about a tenth of a second.
"""

from __future__ import annotations

import numpy as np

from bonsaigpt.data.tokenizers.base import smallest_dtype
from bonsaigpt.data.tokenizers.vocabulary import Vocabulary

__all__ = ["ranks_of"]


def ranks_of(vocabulary: Vocabulary) -> tuple[dict[bytes, int], np.ndarray] | None:
    """Ranks that merge as the rules do: (bytes of a token to its rank, rank to id of the smallest dtype), or None.

    A single byte's rank is its value; the token of rule k has rank 256 + k, whatever ids the vocabulary gives.
    """
    rank_of = {bytes([byte]): byte for byte in range(256)}
    parts: list[tuple[int, int]] = [(-1, -1)] * 256
    rules: dict[tuple[int, int], int] = {}
    for first, second in vocabulary.merges:
        left, right = rank_of.get(first), rank_of.get(second)
        rank = len(parts)
        if left is None or right is None or first + second in rank_of:
            return None
        if not _border_holds(left, right, rank, parts, rules):
            return None
        rank_of[first + second] = rank
        rules[left, right] = rank
        parts.append((left, right))
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces) if piece}
    if len(ids) != len(vocabulary.pieces) - len(vocabulary.special) or ids.keys() != rank_of.keys():
        return None  # two ids for the same bytes, or a token that no rule makes
    table = np.array([ids[piece] for piece in rank_of], dtype=smallest_dtype(len(vocabulary.pieces)))
    return rank_of, table


def _border_holds(
    left: int, right: int, rank: int, parts: list[tuple[int, int]], rules: dict[tuple[int, int], int]
) -> bool:
    """Whether no rule before ``rank`` joins across the border of two tokens while they are made of their bytes."""
    left_until = right_until = rank
    while True:
        across = rules.get((left, right))
        # At equal ranks the leftmost pair goes first: the left token was joined to its own left neighbour already,
        # while the right one's join to its right neighbour would come too late.
        if across is not None and across < left_until and across <= right_until:
            return False
        if left < 256 and right < 256:
            return True
        # Back in time: take apart what was joined last.
        later = max(left, right)
        if left == later:
            left_until, left = left, parts[left][1]
        if right == later:
            right_until, right = right, parts[right][0]
