"""Rows filled with whole documents, for order `packed`.

The rule: documents are taken in one fixed random order. One that is longer than a row is cut into full rows, and what
is left of it counts as a document. Windows of 4,096 such pieces are packed by best fit, the longest first (Johnson
1973; for language models Ding et al. 2024, "Fewer truncations improve language modeling"): a piece goes where it leaves
the least room, or into a new row. What stays empty asks nothing. So no document is cut that need not be, each token but
the first of the split is predicted exactly once an epoch, nothing is dropped, and the price is some padding (measured
by `benchmarks/reading.py`).

Which pieces share a row does not depend on the seed: it is found once for each block size and kept in two indexes, so
that any row is found by its number. Each epoch then takes the rows in another order.

A document's inputs are the end-of-text token before it and its own tokens but the last one; its targets are its tokens,
the end-of-text token after it included. The first document has no token before it, so its first token is no target.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.indexes import INDEX, Indexes
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.progress import Advance
from bonsaigpt.randomness import key, permute

__all__ = ["PackedRows", "best_fit", "packed_rows"]

_WINDOW = 4096
"""Pieces that are packed at once: enough to fill rows, few enough to be held."""

_Piece = tuple[int, int]
"""Place of the first target, and number of targets."""


@dataclass(frozen=True)
class PackedRows:
    """Which pieces each row holds."""

    rows: TokenStream
    """For each row the number of its first piece; at last the number of all pieces."""
    pieces: TokenStream
    """For each piece the place of its first target and the number of its targets; at last the number of all tokens."""
    block_size: int
    end_of_text: int
    """Fills what stays empty."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows) - 1

    def pieces_of(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The (place, length) pairs of the rows with these numbers."""
        edges = self.rows.gather(numbers, 2).tolist()
        return [self.pieces.read(2 * first, 2 * last).astype(np.int64).reshape(-1, 2) for first, last in edges]

    def batch(self, numbers: np.ndarray, stream: TokenStream, *, document_mask: bool) -> Batch:
        """The rows with these numbers."""
        shape = len(numbers), self.block_size
        tokens_BT, targets_BT = np.full(shape, self.end_of_text), np.full(shape, IGNORE)
        documents_BT = np.zeros(shape, dtype=np.int32)
        count = 0
        for row, pieces in enumerate(self.pieces_of(numbers)):
            at = 0
            for number, (place, length) in enumerate(pieces.tolist()):
                [ids] = stream.gather(np.array([place - 1]), length + 1)
                here = slice(at, at + length)
                tokens_BT[row, here], targets_BT[row, here], documents_BT[row, here] = ids[:-1], ids[1:], number
                at += length
            documents_BT[row, at:] = len(pieces)
            count += at
        documents = documents_BT if document_mask else None
        return Batch(tokens_BT=tokens_BT, targets_BT=targets_BT, count=count, documents_BT=documents)


def packed_rows(
    documents: TokenStream,
    *,
    block_size: int,
    end_of_text: int,
    indexes: Indexes,
    advance: Advance,
) -> PackedRows:
    """Pack the documents of the index ``documents`` into rows, or open the rows that were kept."""
    total = int(documents.read(len(documents) - 1, len(documents))[0])

    def pieces() -> Iterator[np.ndarray]:
        for packed in _packed(documents, block_size, advance):
            yield np.array([piece for row in packed for piece in row], dtype=INDEX).reshape(-1)
        yield np.array([total], dtype=INDEX)

    def rows() -> Iterator[np.ndarray]:
        at = 0
        yield np.zeros(1, dtype=INDEX)
        for packed in _packed(documents, block_size, advance):
            ends = at + np.cumsum([len(row) for row in packed])
            at = int(ends[-1])
            yield ends.astype(INDEX)

    piece_index = indexes.open(f"train.packed-{block_size}.pieces", pieces)
    row_index = indexes.open(f"train.packed-{block_size}.rows", rows)
    return PackedRows(row_index, piece_index, block_size, end_of_text)


def _packed(documents: TokenStream, block_size: int, advance: Advance) -> Iterator[list[list[_Piece]]]:
    """The rows of one window of documents after the other."""
    count = len(documents) - 1
    for first in range(0, count, _WINDOW):
        advance("packing documents", first, count)
        numbers = permute(key("packing"), np.arange(first, min(first + _WINDOW, count)), count)
        full: list[list[_Piece]] = []
        short: list[_Piece] = []
        for start, end in documents.gather(numbers, 2).tolist():
            place = max(1, start)
            while end - place >= block_size:
                full.append([(place, block_size)])
                place += block_size
            if end > place:
                short.append((place, end - place))
        bins = best_fit([length for _, length in short], block_size)
        if full or bins:
            yield full + [[short[number] for number in row] for row in bins]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which lengths share a bin, by their numbers: the longest first, each where it leaves the least room."""
    rooms: list[int] = []
    """Of the bins, in ascending order."""
    bins: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        at = bisect_left(rooms, lengths[number])
        if at < len(rooms):
            room, row = rooms.pop(at), bins.pop(at)
        else:
            room, row = capacity, []
        room -= lengths[number]
        row.append(number)
        at = bisect_left(rooms, room)
        rooms.insert(at, room)
        bins.insert(at, row)
    return bins
