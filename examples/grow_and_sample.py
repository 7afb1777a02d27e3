"""Grow two small GPTs that differ in one setting, hold them against each other, and let the better one write.

    python examples/grow_and_sample.py        # offline; about two minutes on two CPU cores

The text is Python's own standard library. Run again, it goes on where it was stopped, or uses what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bonsaigpt as bonsai


def main(steps: int = 300, settings: Mapping[str, Any] | None = None) -> None:
    """Train, compare, sample."""
    runs = []
    for kind in ("gelu", "relu2"):
        run = bonsai.train(
            "stdlib",
            name=f"example-{kind}",
            steps=steps,
            auto_resume=True,
            settings={"model.mlp.kind": kind, **(settings or {})},
        )
        scores = run.eval()
        print(f"{kind}: {scores.loss:.4f} nats a token, {scores.bits_per_byte:.4f} bits per byte")
        runs.append((scores.loss, run))
    print(f"the curves: {bonsai.compare([run for _, run in runs])}")

    _, best = min(runs, key=lambda pair: pair[0])
    print(best.sample("def ", tokens=100, temperature=0.8, seed=1))

    # What is more of a surprise to it: code or prose? (nats a token)
    for text in ("for name in names:\n    print(name)\n", "Shall I compare thee to a summer's day?\n"):
        print(f"{best.loss(text):.2f} {text!r}")


if __name__ == "__main__":
    main()
