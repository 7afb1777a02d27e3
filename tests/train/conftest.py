"""The command that several processes run together, and one alone."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def command(tiny_text: Path, tiny_flags: list[str]) -> list[str]:
    """`bonsai train` for 50 steps of 5 rows, which no two processes can share evenly."""
    return [
        *("train", "zero-one", "--data.kind", "files", "--data.path", str(tiny_text), *tiny_flags),
        *("--train.batch_size", "5", "--train.steps", "50", "--train.eval_interval", "10"),
        *("--train.log_interval", "1", "--train.compile", "off", "--optim.schedule.kind", "constant"),
    ]
