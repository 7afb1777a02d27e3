"""What `stretch` and `shrink` have in common: a run that goes on from another's weights, changed, as one of its own."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bonsaigpt import __version__
from bonsaigpt.checkpoint import Arrays, Checkpoint, RunDirectory
from bonsaigpt.cli.common import check_run_name, run_folder
from bonsaigpt.cli.experiment import open_data, with_overrides
from bonsaigpt.config import ModelConfig, RunConfig
from bonsaigpt.errors import CheckpointError
from bonsaigpt.train import start_state
from bonsaigpt.train.resume import check_policy

__all__ = ["GoneOn", "new_run"]


@dataclass(frozen=True)
class GoneOn:
    """A run that was made from another."""

    path: Path
    origin: str
    """``runs/NAME@STEP``."""
    before: RunConfig
    config: RunConfig


def new_run(
    arguments: argparse.Namespace,
    argv: list[str],
    overrides: dict[str, Any],
    *,
    verb: str,
    suffix: str,
    config_of: Callable[[RunConfig], RunConfig],
    arrays_of: Callable[[Arrays, ModelConfig, ModelConfig], Arrays],
) -> GoneOn:
    """Make the new run, with the checkpoint of step 0 that it goes on from.

    Args:
        verb: as a participle, under which ``environment.json`` names the origin.
        suffix: added to the run's name where ``--name`` gives none.
        arrays_of: weights, or the optimizer's state, of the old model for the new one.
    """
    parent, last = os.path.split(arguments.run)
    last, _, which = last.partition("@")
    folder = run_folder(os.path.join(parent, last), arguments.runs)
    old = RunDirectory.open(folder)
    target = arguments.runs / check_run_name(arguments.name or f"{folder.name}-{suffix}")
    RunDirectory.refuse_existing(target)
    before = old.config
    config = with_overrides(config_of(before), overrides)
    check_policy(config)
    saved = old.load(which or "last")
    source = open_data(config, arguments.corpora, Console())
    tokenizer = old.tokenizer
    if tokenizer.to_json() != source.tokenizer.to_json():
        raise CheckpointError(
            f"{folder} was trained with another tokenizer than its data has now: restore its text or its corpus"
        )
    start = Checkpoint(
        model=arrays_of(saved.model, before.model, config.model),
        optimizer=arrays_of(saved.optimizer, before.model, config.model),
        state=start_state(source),
    )
    origin = f"{folder}@{saved.state['step']}"
    about = {
        "bonsaigpt": __version__,
        "command": shlex.join(["bonsai", *argv]),
        verb: origin,
        "data": source.fingerprint,
    }
    RunDirectory.create(target, config, tokenizer, about, start=start)
    return GoneOn(target, origin, before, config)
