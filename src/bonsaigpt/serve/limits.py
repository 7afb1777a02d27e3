"""How much one client may ask for, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one server. Times are in seconds."""

    rows: int = 16
    """Texts that each model makes at once."""
    queue: int = 64
    """Texts that may wait for a row, of all models together; more are answered 429."""
    tokens: int = 4096
    """New tokens of a text."""
    prompt: int = 16_384
    """Tokens of a prompt. Past the model's block only the last ones are seen, but all are held."""
    body: int = 1 << 20
    """Bytes of a request."""
    seconds: float = 120.0
    """For all texts of a request, the time in the queue included."""
    body_seconds: float = 10.0
    """For the bytes of a request to come in."""
    header_seconds: float = 10.0
    """For the head of a request, from the connection's first byte, or from the last answer."""
    stalled_seconds: float = 30.0
    """That a client may leave an answer unread."""
    connections: int = 512
    """Open at once; more are answered 503."""
