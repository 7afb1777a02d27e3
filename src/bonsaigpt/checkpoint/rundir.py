"""The run directory: the common currency of all verbs (layout in docs/runs.md)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import files
from bonsaigpt.checkpoint.files import Arrays, Checkpoint
from bonsaigpt.config import ModelConfig, RunConfig, dump_toml, load_toml, validate
from bonsaigpt.data.tokenizers import Tokenizer, from_json
from bonsaigpt.errors import CheckpointError, OutputError, did_you_mean
from bonsaigpt.files import folder_aside, replace_folder, restore_folders, write_text, writing
from bonsaigpt.spec import parameters

__all__ = ["RunDirectory", "check_shapes", "check_weights", "split_address"]


def split_address(address: str) -> tuple[str, str]:
    """``RUN@500`` as folder and checkpoint (``""``: best, else last); folders above may have an @ in their names."""
    parent, name = os.path.split(address)
    name, _, which = name.partition("@")
    return os.path.join(parent, name), which


class RunDirectory:
    """One run on disk. The object itself holds nothing but the path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ------------------------------------------------------------------ making and opening

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        tokenizer: Tokenizer,
        environment: dict[str, Any],
        *,
        start: Checkpoint | None = None,
    ) -> RunDirectory:
        """Make a new run; an existing folder is never written over.

        Args:
            start: a checkpoint of step 0 that the run is born with, where the seed alone does not make its weights.

        Raises:
            OutputError: the folder exists, or cannot be written (then nothing is left behind).
        """
        cls.refuse_existing(path)
        with folder_aside(path) as aside:
            write_text(aside / "config.toml", dump_toml(config))
            write_text(aside / "tokenizer.json", tokenizer.to_json())
            write_text(aside / "environment.json", json.dumps(environment, indent=2) + "\n")
            if start is not None:
                files.write(cls(aside).folder(0), start)
            replace_folder(aside, path)
        return cls(path)

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise ``OutputError`` if something is there already: callers ask before they prepare anything."""
        if path.exists():
            raise OutputError(
                f"{path} exists already: continue it with `bonsai train {path} --resume`, "
                "or choose another name with --name"
            )

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            CheckpointError: no such folder, or not a run; near names are suggested.
        """
        if not (path / "config.toml").is_file():
            if path.is_dir():
                raise CheckpointError(
                    f"{path} is not a run (it has no config.toml): give the folder of a run, or of a model in Hugging "
                    "Face's format"
                )
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise CheckpointError(f"there is no run at {path}.{did_you_mean(path.name, siblings)}")
        return cls(path)

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        file = self.path / "config.toml"
        return validate(load_toml(file), origin=str(file))

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's own tokenizer."""
        file = self.path / "tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}): restore it") from None
        return from_json(text, origin=str(file))

    @property
    def environment(self) -> dict[str, Any]:
        """What the run was made with; empty if the file is gone."""
        try:
            return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def note_session(self, environment: dict[str, Any]) -> None:
        """Add to environment.json what the run is continued with; the first session's entries stay."""
        old = self.environment
        words = [str(environment[k]) for k in ("started", "command", "engine", "why") if k in environment]
        words += [f"{name}: {why}" for name, why in environment.get("decisions", {}).items()]
        old["resumed"] = [*old.get("resumed", []), "; ".join(words)]
        write_text(self.path / "environment.json", json.dumps(old, indent=2) + "\n")

    # ------------------------------------------------------------------ checkpoints

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.path / "checkpoints"

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint folder, ascending; damaged ones included."""
        names = [p.name for p in self.checkpoints.glob("step-*") if p.is_dir()]
        return sorted(int(n.removeprefix("step-")) for n in names if n.removeprefix("step-").isdecimal())

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.checkpoints / f"step-{step:06d}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole or not at all, and let the pointers follow (see ``saving``)."""
        with self.saving(checkpoint.state) as aside:
            files.fill(aside, checkpoint)

    @contextmanager
    def saving(self, state: dict[str, Any]) -> Iterator[Path]:
        """An empty folder to be filled with the tensors of a checkpoint. Afterwards it stands in its place, `last` (and
        `best`, if it is) points at it, and what nothing points at and is not marked ``keep`` is dropped."""
        with files.writing_aside(self.folder(state["step"]), state) as aside:
            yield aside
        self._point(state)
        for old in self.steps():
            if old not in (state["step"], state["best_step"]) and not self._is_kept(old):
                shutil.rmtree(self.folder(old), ignore_errors=True)

    def _is_kept(self, step: int) -> bool:
        try:
            return bool(files.read_state(self.folder(step)).get("keep"))
        except (OSError, ValueError):
            return False  # damaged: nothing to keep

    def tidy(self) -> None:
        """Bring back or clear away what a kill in the middle of a write left."""
        if self.checkpoints.is_dir():
            with writing(self.checkpoints):
                restore_folders(self.checkpoints)
            for step in reversed(self.steps()):
                with suppress(CheckpointError):
                    files.check(self.folder(step))
                    self._point(files.read_state(self.folder(step)))
                    break

    def _point(self, state: dict[str, Any]) -> None:
        """Make `last` and `best` say what the newest checkpoint says: a kill may have come before they were written."""
        for name, step in (("last", state["step"]), ("best", state["best_step"])):
            if self.folder(step).is_dir():  # a run whose first evaluation stays the best has no checkpoint of it
                write_text(self.checkpoints / name, f"{self.folder(step).name}\n")

    def load(self, which: str = "", *, optimizer: bool = True) -> Checkpoint:
        """A checkpoint: ``best``, ``last``, a step number, or the default: best, else last.

        ``last`` falls back to the newest whole checkpoint; a step that was asked for by number never does.

        Raises:
            CheckpointError: none there, damaged, or its tensors are not those of the configuration.
        """
        checkpoint = files.read(self.find(which), optimizer=optimizer)
        check_weights(checkpoint.model, self.config.model, origin=str(self.path))
        return checkpoint

    def last(self) -> Path | None:
        """The folder of the newest whole checkpoint; None if there is no checkpoint yet.

        Raises:
            CheckpointError: all are damaged, or its tensors are not those of the configuration.
        """
        if not self.steps():
            return None
        folder = self.find("last")
        check_shapes(files.shapes(folder), self.config.model, origin=str(self.path))
        return folder

    def find(self, which: str = "") -> Path:
        """The folder of a checkpoint, as ``load`` takes it; its hashes are checked for the fall-back only."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.path} has no checkpoint yet: train it with `bonsai train {self.path}`")
        if which.isdecimal():
            if int(which) not in steps:
                raise CheckpointError(f"{self.path} has no checkpoint of step {which}: it has {_words(steps)}")
            return self.folder(int(which))
        if which not in ("", "best", "last"):
            raise CheckpointError(
                f"'@{which}' names no checkpoint: use @best, @last or one of the steps {_words(steps)}"
            )
        if which != "last":
            try:
                pointed = self.checkpoints / (self.checkpoints / "best").read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                pointed = None
            if pointed is not None and pointed.is_dir():
                return pointed
            if which == "best":
                raise CheckpointError(f"{self.path} has no best checkpoint yet: use {self.path}@last")
        damage: list[str] = []
        for step in reversed(steps):
            try:
                files.check(self.folder(step))
            except CheckpointError as error:
                damage.append(str(error))
            else:
                return self.folder(step)
        raise CheckpointError(f"{self.path} has no whole checkpoint: " + "; ".join(damage))


def check_weights(weights: Arrays, config: ModelConfig, *, origin: str) -> None:
    """Raise ``CheckpointError`` unless the tensors are exactly those of the spec, by name and shape."""
    check_shapes({name: array.shape for name, array in weights.items()}, config, origin=origin)


def check_shapes(found: dict[str, tuple[int, ...]], config: ModelConfig, *, origin: str) -> None:
    """``check_weights`` for tensors of which only the shapes are known."""
    wanted = {p.name: p.shape for p in parameters(config) if p.tied_to is None}
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"the weights of {origin} lack {name}: they belong to another configuration")
        if found[name] != shape:
            raise CheckpointError(f"{name} of {origin} has shape {found[name]}, the configuration says {shape}")
    if extra := sorted(found.keys() - wanted):
        raise CheckpointError(f"the weights of {origin} hold {extra[0]}, which the configuration does not know")


def _words(steps: list[int]) -> str:
    return ", ".join(map(str, steps if len(steps) < 9 else [*steps[:4], *steps[-4:]]))
