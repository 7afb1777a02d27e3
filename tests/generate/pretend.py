"""A decoder without a model: the logits are a hash of all tokens that the row was given, so any slip shows at once."""

from __future__ import annotations

import numpy as np

from bonsaigpt.randomness import uniform

__all__ = ["Pretend", "pretend_logits"]


def pretend_logits(tokens: list[int], vocab_size: int, *, noise: float = 0.0) -> np.ndarray:
    """Logits after some tokens; with ``noise`` those of a draft that is right more or less often."""
    seed = hash(tuple(tokens)) & 0xFFFFFFFFFFFFFFFF  # of integers: the same in every process
    logits = uniform(seed, np.arange(vocab_size)) * 4
    if noise:
        logits = logits + uniform(seed ^ 0xD1CE, np.arange(vocab_size)) * noise
    return logits.astype(np.float32)


class Pretend:
    """See ``bonsaigpt.engines.Decoder``."""

    why = "pretended"

    def __init__(self, *, rows: int, block_size: int = 24, vocab_size: int = 17, noise: float = 0.0) -> None:
        self.rows, self.block_size = rows, block_size
        self.vocab_size, self.vocabulary, self.noise = vocab_size, vocab_size, noise
        self.held: list[list[int]] = [[] for _ in range(rows)]
        self.read = 0
        """Tokens read in all."""
        self.passes = 0

    def prefill(self, row: int, tokens: np.ndarray) -> np.ndarray:
        return self.verify(row, tokens)[-1]

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        assert len(set(rows.tolist())) == len(rows)
        passes = self.passes
        found = np.stack([self.verify(int(row), tokens[i : i + 1])[0] for i, row in enumerate(rows)])
        self.passes = passes + 1
        return found

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        assert len(tokens) > 0
        self.passes += 1
        self.read += len(tokens)
        found = []
        for token in tokens.tolist():
            self.held[row].append(token)
            found.append(pretend_logits(self.held[row], self.vocab_size, noise=self.noise))
        assert len(self.held[row]) <= self.block_size, "the row is full"
        return np.stack(found)

    def truncate(self, row: int, length: int) -> None:
        assert length <= len(self.held[row])
        del self.held[row][length:]

    def reach(self, row: int, length: int) -> int:
        return length

    def copy_row(self, source: int, target: int) -> None:
        self.held[target] = list(self.held[source])

    def length(self, row: int) -> int:
        return len(self.held[row])
