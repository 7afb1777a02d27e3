"""Tokens to text as it grows: whole characters only, and nothing that may still become a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from bonsaigpt.data.tokenizers import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """The text of one row, in pieces that will not be taken back.

    Args:
        stop: where the one of these begins that is complete first, the text ends, wherever tokens have their borders.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""
        self._bytes: dict[int, bytes] = {}
        self.text = ""
        self.stopped: str | None = None
        """The stop string that ended the text."""

    def push(self, token: int) -> str:
        """The text that this token makes certain, perhaps none."""
        if token not in self._bytes:
            self._bytes[token] = self._tokenizer.decode_bytes([token])
        return self._release(self._decoder.decode(self._bytes[token]), final=False)

    def finish(self) -> str:
        """What was held back; U+FFFD for a character that was never completed."""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, fresh: str, *, final: bool) -> str:
        if self.stopped is not None:
            return ""
        if not self._stop:
            self.text += fresh
            return fresh
        text = self._pending + fresh
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if found:
            end, _, self.stopped = min(found)
            at = end - len(self.stopped)
            piece, self._pending = text[:at], ""
        else:
            keep = 0 if final else self._may_become_stop(text)
            piece, self._pending = text[: len(text) - keep], text[len(text) - keep :]
        self.text += piece
        return piece

    def _may_become_stop(self, text: str) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stop):
                return length
        return 0
