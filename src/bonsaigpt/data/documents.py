"""Where the documents of a stream start.

Documents are separated by end-of-text tokens. The index ``documents`` holds one number more than there are documents:
where each starts, then the number of all tokens. So document i is [index[i], index[i + 1]), its end-of-text token
included, and the index is read as a stream like any other, without being held.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bonsaigpt.data.indexes import INDEX, Indexes
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.progress import Advance

__all__ = ["document_starts"]


def document_starts(stream: TokenStream, end_of_text: int, indexes: Indexes, advance: Advance) -> TokenStream:
    """The index of the training stream, as it was kept, or made first."""

    def starts() -> Iterator[np.ndarray]:
        yield np.zeros(1, dtype=INDEX)
        for first, piece in stream.pieces():
            advance("finding documents", first, len(stream))
            yield (np.flatnonzero(piece == end_of_text) + first + 1).astype(INDEX)
        if int(stream.read(len(stream) - 1, len(stream))[0]) != end_of_text:
            yield np.array([len(stream)], dtype=INDEX)

    return indexes.open("train.documents", starts)
