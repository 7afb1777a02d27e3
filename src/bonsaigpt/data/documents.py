"""Where the documents of a stream start: an index that is made once and lies beside the shards.

Documents are separated by end-of-text tokens. The file ``SPLIT.documents.bin`` holds one little-endian uint64 more than
there are documents: where each starts, then the number of all tokens. So document i is [index[i], index[i + 1]), its
end-of-text token included, and the index is read as a stream like any other, without being held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bonsaigpt.data.stream import FileShard, TokenStream
from bonsaigpt.files import file_aside

__all__ = ["INDEX", "document_starts", "index_file"]

INDEX = np.dtype("<u8")
"""Numbers of an index on the disk."""


def document_starts(
    stream: TokenStream, end_of_text: int, file: Path | None, advance: Callable[[str, int, int], None]
) -> TokenStream:
    """The index of a stream, read from its file, or made first; without a file it is kept in memory."""

    def starts() -> Iterator[np.ndarray]:
        yield np.zeros(1, dtype=INDEX)
        for first, piece in stream.pieces():
            advance("finding documents", first, len(stream))
            yield (np.flatnonzero(piece == end_of_text) + first + 1).astype(INDEX)
        if int(stream.read(len(stream) - 1, len(stream))[0]) != end_of_text:
            yield np.array([len(stream)], dtype=INDEX)

    return index_file(file, starts, last=len(stream))


def index_file(file: Path | None, numbers: Callable[[], Iterator[np.ndarray]], *, last: int) -> TokenStream:
    """A stream of uint64 from a file that ends with the number ``last``; if there is none such it is written, whole or
    not at all. Without a file the numbers are kept in memory."""
    if file is None:
        return TokenStream.of(np.concatenate(list(numbers())))
    if not _is_whole(file, last):
        with file_aside(file) as aside, aside.open("wb") as out:
            for part in numbers():
                out.write(np.ascontiguousarray(part, dtype=INDEX).data)
    return TokenStream([FileShard(file, file.stat().st_size // INDEX.itemsize)], INDEX)


def _is_whole(file: Path, last: int) -> bool:
    size = file.stat().st_size if file.is_file() else 0
    if size < INDEX.itemsize or size % INDEX.itemsize:
        return False
    index = TokenStream([FileShard(file, size // INDEX.itemsize)], INDEX)
    return int(index.read(len(index) - 1, len(index))[0]) == last
