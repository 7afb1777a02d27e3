"""How all runs of a sweep compute, decided once.

Compiling, the attention kernel and the number format are decided by the clock where a run leaves them open. So runs of
one sweep could come out with different ones, and differ in loss and seconds by more than what is swept. Therefore one
run decides for all that leave the same open: the run that leaves most open, and of these the one with the most work,
which has most to win. What is swept, or given, stays. Workers and rows in a pass follow from the sizes of each run, and
it decides them for itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bonsaigpt.config import RunConfig
from bonsaigpt.errors import OutputError
from bonsaigpt.files import write_text
from bonsaigpt.measure import flops_per_token
from bonsaigpt.recipes import flatten
from bonsaigpt.study.plan import PlannedRun, Settings

__all__ = ["Decided", "decider", "hangs_on_the_clock", "read_decided", "write_decided"]

_CLOCK = {"train.precision", "train.compile"}
_SHARED = {*_CLOCK, "train.attention_kernel", "optim.matrices.precision"}


@dataclass(frozen=True)
class Decided:
    """What one run decided for all."""

    settings: Settings
    """Of those that it left open."""
    why: Mapping[str, str]
    """By the names of the settings; the kernel is decided with compiling."""

    def settings_for(self, config: RunConfig) -> Settings:
        """What a run of the sweep takes from it."""
        left_open = set(config.left_open)
        if "train.precision" not in left_open:
            left_open.discard("optim.matrices.precision")  # it follows one that is asked
        return {name: value for name, value in self.settings.items() if name in left_open}


def hangs_on_the_clock(config: RunConfig) -> bool:
    """Whether a run leaves something open that is decided by taking steps."""
    return not _CLOCK.isdisjoint(config.left_open)


def decider(runs: Iterable[PlannedRun]) -> PlannedRun:
    """The run that decides; the first of several equal ones."""
    return max(runs, key=lambda run: (len(_SHARED.intersection(run.config.left_open)), _work(run.config)))


def _work(config: RunConfig) -> int:
    """Floating-point operations of the training; without the head as long as the vocabulary is not known."""
    model, train = config.model, config.train
    known = model.model_copy(update={"vocab_size": model.vocab_size or 1})
    return train.steps * train.batch_size * model.block_size * flops_per_token(known)


def write_decided(file: Path, asked: RunConfig, resolved: RunConfig, why: Mapping[str, str]) -> None:
    """Write what the engine made of a run's open settings."""
    values = flatten(resolved.model_dump(mode="json"))
    names = [name for name in asked.left_open if name in _SHARED]
    decided = Decided({name: values[name] for name in names}, {name: why[name] for name in names if name in why})
    write_text(file, json.dumps(asdict(decided), indent=2) + "\n")


def read_decided(file: Path) -> Decided | None:
    """What ``write_decided`` wrote; None if nothing was decided yet.

    Raises:
        OutputError: the file is damaged.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return Decided(record["settings"], record["why"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{file} is damaged: restore it, or start the sweep anew with --name") from None
