"""From what a user names to what can be computed: configuration, engine, data. `train` and `profile` share it."""

from __future__ import annotations

import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from bonsaigpt import __version__, recipes
from bonsaigpt.cli.common import Opened, progress_bar, whisper
from bonsaigpt.config import RunConfig, derive, validate
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.errors import ConfigError
from bonsaigpt.processes import Process

__all__ = ["as_run", "environment_of", "make_engine", "open_data", "with_model_of", "with_overrides", "with_vocabulary"]


def as_run(recipe: str, runs: Path, *, resume: bool) -> Path | None:
    """The run's folder, if the argument means one; a recipe of the same name is meant first, unless to resume."""
    path = Path(recipe)
    if path.name == "config.toml" and path.is_file():  # a run's own file means the run
        return path.parent
    if (path.is_dir() and recipe not in recipes.names()) or (path.suffix != ".toml" and len(path.parts) > 1):
        return path
    return runs / recipe if (resume or recipe not in recipes.names()) and (runs / recipe).is_dir() else None


def with_overrides(config: RunConfig, overrides: dict[str, Any]) -> RunConfig:
    """A run's configuration with the settings that were given as flags on top."""
    return validate(recipes.merge(config.model_dump(exclude_none=True), overrides), origin="the given settings")


def with_model_of(config: RunConfig, opened: Opened, overrides: dict[str, Any]) -> RunConfig:
    """The configuration with the model and the tokenizer that the folder of another program brings, and the flags on
    top. The context stays the recipe's where that is shorter: memory and work of a step are its business."""
    data = config.model_dump(exclude_none=True)
    block = min(config.model.block_size, opened.config.block_size)
    data["model"] = opened.config.model_dump(exclude_none=True) | {"block_size": block}
    place = Path(opened.label)
    of_characters = place.is_file() and place.with_name("meta.pkl").is_file()  # which the text has too
    if "tokenizer" in data["data"] and not of_characters:
        data["data"]["tokenizer"] = {"kind": "file", "path": str(place if place.is_dir() else place.parent)}
    return validate(recipes.merge(data, overrides), origin="the given settings")


def make_engine(config: RunConfig, process: Process | None = None) -> Engine:
    """The engine of a run; as one of several processes that train together, if ``process`` says so.

    Raises:
        DeviceError: the device is not there, or has not the memory for this model: before anything takes its time.
    """
    train = config.train
    engine = load_engine(
        train.engine,
        device=train.device,
        precision=train.precision,
        threads=train.threads,
        workers=train.workers,
        process=process or Process(),
    )
    engine.check_fits(config)
    return engine


def open_data(config: RunConfig, corpora: Path, console: Console) -> BatchSource:
    """The batches to train on, prepared first if need be, with a progress bar."""
    with progress_bar(console) as advance:
        return open_source(config, corpora, say=whisper(console), advance=advance)


def with_vocabulary(config: RunConfig, source: BatchSource) -> RunConfig:
    """The configuration with the vocabulary that the data turned out to have."""
    size = source.tokenizer.vocab_size
    if config.model.vocab_size is None:
        return derive(config, model={"vocab_size": size})
    if config.model.vocab_size < size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size} is smaller than the tokenizer's {size} tokens: leave it out"
        )
    return config


def environment_of(engine: Engine, source: BatchSource, verb: str, argv: list[str]) -> dict[str, Any]:
    """What a run is made with, for its environment.json."""
    return {
        "bonsaigpt": __version__,
        **engine.describe(),
        "data": source.fingerprint,
        "tokenizer": f"{source.tokenizer.kind}, {source.tokenizer.vocab_size} tokens",
        "git": _git_state(),
        "command": shlex.join(["bonsai", verb, *argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_state() -> str | None:
    """Commit of the folder we run in, with a mark if files were changed; None outside a repository."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
