"""What a server did, in the text format of Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter

__all__ = ["Histogram", "Metrics"]

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram:
    """Of seconds, in fixed buckets."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> list[str]:
        """As Prometheus reads it: each bucket counts all that is not above its bound."""
        found, total = [], 0
        for bound, count in zip((*_BOUNDS, math.inf), self._counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{"+Inf" if bound == math.inf else bound}"}} {total}')
        return [*found, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """Counters of one server; written by the event loop alone."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By route and status."""
        self.tokens = 0
        """Made."""
        self.prompt_tokens = 0
        self.refused = 0
        """For want of room."""
        self.gone = 0
        """Clients that left before their answer was whole."""
        self.first_token = Histogram()
        self.duration = Histogram()
        self._began = time.monotonic()

    def text(self, *, texts: int) -> str:
        """All of it; ``texts``: at work or waiting now."""
        lines: list[str] = []

        def put(name: str, kind: str, words: str, values: list[str]) -> None:
            lines.extend((f"# HELP {name} {words}", f"# TYPE {name} {kind}", *values))

        def one(name: str, kind: str, words: str, value: float) -> None:
            put(name, kind, words, [f"{name} {value}"])

        counts = [
            f'bonsai_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        put("bonsai_requests_total", "counter", "Answers, by route and status.", counts)
        one("bonsai_tokens_total", "counter", "Tokens made.", self.tokens)
        one("bonsai_prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens)
        one("bonsai_refused_total", "counter", "Requests answered 429 for want of room.", self.refused)
        one("bonsai_gone_total", "counter", "Clients that left before their answer was whole.", self.gone)
        one("bonsai_texts", "gauge", "Texts at work or waiting.", texts)
        one("bonsai_uptime_seconds", "gauge", "Since the start.", round(time.monotonic() - self._began, 3))
        for name, words, histogram in (
            ("bonsai_first_token_seconds", "From the request to its first token.", self.first_token),
            ("bonsai_request_seconds", "From a request for texts to their end.", self.duration),
        ):
            put(name, "histogram", words, histogram.lines(name))
        return "\n".join(lines) + "\n"
