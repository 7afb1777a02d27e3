"""Toy `recall`: the model reads pairs of key and value, and later answers keys with their values.

With three pairs, a gap of two and two queries a row is   k1 v4 k0 v2 k7 v3 . . k7 v3 k1 v4   where the values after
the dots are asked for (multi-query associative recall: Arora et al. 2023, "Zoology", section 3). All keys of a row
differ, and so do its values, so the levels are known exactly:

    ln(values)   nats, share 1 / values: a model that guesses blindly
    ln(pairs)    nats, share 1 / pairs: one that knows which values there were, but not whose each is (first query)
    0            nats, all right: one that looks them up

Two layers learn the lookup: one that notes beside each value its key, and one that finds the key (Olsson et al. 2022).
``gap`` moves the pairs away from the queries, so a cache that keeps the newest tokens alone fails at a known distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bonsaigpt.config import RecallData
from bonsaigpt.data.toys.task import symbols
from bonsaigpt.randomness import hash64

__all__ = ["Recall", "chance"]


def chance(config: RecallData) -> dict[str, float]:
    """Loss in nats a query of a model that guesses among all values, and among those of the row (first query)."""
    return {"blind_nats": math.log(config.values), "unbound_nats": math.log(config.pairs)}


@dataclass(frozen=True)
class Recall:
    """Pairs of key and value, and queries."""

    config: RecallData

    @property
    def name(self) -> str:
        c = self.config
        return f"recall-{c.keys}-{c.values}-{c.pairs}-{c.gap}-{c.queries}"

    @property
    def alphabet(self) -> str:
        """Keys, values, and the filler."""
        return symbols(self.config.keys + self.config.values + 1, setting="data.keys + data.values")

    def problems(self, key: int, numbers: np.ndarray) -> np.ndarray:
        """Keys, values, and the places of the pairs that are asked for, (n, 2 pairs + queries)."""
        c, columns = self.config, self.config.keys + self.config.values + self.config.pairs
        draws = hash64(key, numbers[:, None] * columns + np.arange(columns))
        keys, values, asked = np.split(draws, [c.keys, c.keys + c.values], axis=1)
        chosen = [
            np.argsort(drawn, axis=1)[:, :count]
            for drawn, count in ((keys, c.pairs), (values, c.pairs), (asked, c.queries))
        ]
        return np.concatenate(chosen, axis=1)

    def rows(self, problems: np.ndarray) -> np.ndarray:
        c = self.config
        keys, values, asked = np.split(problems, [c.pairs, 2 * c.pairs], axis=1)
        pairs = np.stack([keys, c.keys + values], axis=2)
        queries = np.take_along_axis(pairs, asked[:, :, None], axis=1)
        gap = np.full((len(problems), c.gap), c.keys + c.values)
        return np.concatenate([pairs.reshape(len(problems), -1), gap, queries.reshape(len(problems), -1)], axis=1)

    @property
    def asked(self) -> np.ndarray:
        place = np.arange(self.config.row) - 2 * self.config.pairs - self.config.gap
        return (place >= 0) & (place % 2 == 1)
