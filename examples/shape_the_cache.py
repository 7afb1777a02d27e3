"""How little of the past can a GPT keep, in how few bits, before its text gets worse?

    python examples/shape_the_cache.py        # offline; about three minutes on two CPU cores

No training but that of the model: cache policies are tried on text that it never saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bonsaigpt as bonsai
from bonsaigpt.study.kv_page import KVStudy

POLICIES = ("window(128)", "window(128), int8", "window(64), int4", "sinks(4)+window(28), int4")


def main(steps: int = 300, rows: int = 4, length: int = 384, settings: Mapping[str, Any] | None = None) -> None:
    """Train, measure the policies, and write the same text through the widest and the narrowest."""
    run = bonsai.train("stdlib", name="example-cache", steps=steps, auto_resume=True, settings=settings)
    study = run.study_kv(POLICIES, rows=rows, length=length, fast=True, quiet=True)
    assert isinstance(study, KVStudy)  # of a text, not of a task's answers
    for point in study.points:
        print(f"{point.policy:28} {point.bits:>9,.0f} bits, {point.factor:4.1f} times fewer: {point.added:+.4f} nats")
    print(study.verdict)
    for policy in (POLICIES[0], POLICIES[-1]):
        print(f"--- {policy}\n{run.sample('class ', tokens=80, seed=3, kv=policy)}")


if __name__ == "__main__":
    main()
