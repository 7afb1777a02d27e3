"""What choosing a token costs beside making its logits: each rule, over vocabularies of 65, 2,048 and 50,257 tokens.

A small model makes a token in some 60 microseconds, so a rule that takes as long halves its speed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from common import Summary, finish, guarded, machine, parser, positive, progress, show

from bonsaigpt.sampling import Chooser, Sampling, choose_rows

RULES = {
    "greedy": Sampling(temperature=0),
    "temperature": Sampling(temperature=0.8),
    "top-k 50": Sampling(temperature=0.8, top_k=50),
    "top-p 0.9": Sampling(temperature=0.8, top_p=0.9),
    "min-p 0.05": Sampling(temperature=0.8, min_p=0.05),
    "typical 0.9": Sampling(temperature=0.8, typical_p=0.9),
    "penalties": Sampling(temperature=0.8, repetition_penalty=1.2, frequency_penalty=0.1),
    "top-k, top-p, min-p": Sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.05),
}
_ROWS = 16
_SECONDS = 0.01
"""Of one timing."""


def main() -> None:
    """Time every rule in turns and print."""
    arguments = _arguments()
    figures: dict[str, Any] = {"benchmark": "choosing", "machine": machine(1)}
    print(f"{figures['machine']}\n")
    logits = {size: _logits(size) for size in (65, 2048, 50257)}
    cases = [(size, name, rows) for size in logits for name in RULES for rows in (1, _ROWS)]
    seconds: dict[tuple[int, str, int], list[float]] = {case: [] for case in cases}
    with progress("rules in turns", arguments.rounds) as advance:
        for number in range(arguments.rounds):
            for size, name, rows in cases[:: 1 if number % 2 else -1]:
                seconds[size, name, rows].append(_time(logits[size][:rows], RULES[name]))
            advance(number + 1, "")
    micro = {case: Summary.of([1e6 * s for s in found]) for case, found in seconds.items()}
    table = [
        [name, *(f"{micro[size, name, 1].median:,.1f} / {micro[size, name, _ROWS].median:,.1f}" for size in logits)]
        for name in RULES
    ]
    show("microseconds a token: one row / each of 16 rows", ["rule", *(f"V = {size:,}" for size in logits)], table)
    figures["microseconds"] = {
        f"{name}, V {size}, {rows} rows": micro[size, name, rows].as_dict() for size, name, rows in cases
    }
    finish(figures)


def _logits(size: int) -> np.ndarray:
    """As peaked as those of a trained model: an entropy of about 2 nats."""
    chance = np.random.default_rng(0)
    return (-2.2 * np.log(chance.permuted(np.tile(np.arange(1.0, size + 1), (_ROWS, 1)), axis=1))).astype(np.float32)


def _time(logits_RV: np.ndarray, sampling: Sampling) -> float:
    """Seconds for one token of one row."""
    rows, size = logits_RV.shape
    choosers = [Chooser(replace(sampling, row=row), prompt=np.arange(20), vocab_size=size) for row in range(rows)]
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        choose_rows(logits_RV, choosers, [count] * rows)
        count += 1
    return (time.perf_counter() - began) / count / rows


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/choosing.py --rounds 50")
    flags.add_argument("--rounds", type=positive, default=30, help="timings of each rule (default: 30)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
