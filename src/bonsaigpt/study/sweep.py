"""A sweep on disk: a folder of ordinary runs, the plan that they follow, and what became of each.

runs/SWEEP/
  sweep.json             the plan, and each run's status: planned, done, or failed with the reason
  plan/NAME.toml         each run's whole configuration, before it starts
  plan/decided.json      how all of them compute, decided once (decided.py)
  plan/NAME.log          what it printed
  NAME/                  the run itself, like any other
  sweep.csv, sweep.html  the result

The status is a note, the run's own folder is the truth: whatever is killed in between, the same command looks at the
folders and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.config import RunConfig, ZeroOneData, dump_toml, load_toml, validate
from bonsaigpt.data.prepare import open_source
from bonsaigpt.errors import CheckpointError, OutputError
from bonsaigpt.files import folder_aside, lock, replace_folder, write_text, writing
from bonsaigpt.recipes import flatten
from bonsaigpt.study.plan import Plan, PlannedRun
from bonsaigpt.study.pool import STOPPED, Executor, Work, failure, run_all

__all__ = ["Status", "Sweep", "is_finished", "prepare_data"]


@dataclass(frozen=True)
class Status:
    """What became of a run."""

    word: str = "planned"
    """``planned`` (not begun, or begun and stopped), ``done`` or ``failed``."""
    reason: str = ""
    """Of a failure."""


class Sweep:
    """A plan in its folder."""

    def __init__(self, folder: Path, plan: Plan, status: dict[str, Status]) -> None:
        self.folder, self.plan, self.status = folder, plan, status

    @classmethod
    @contextmanager
    def open(cls, folder: Path, plan: Plan) -> Iterator[Sweep]:
        """Make the folder, or go on with what an earlier call has left in it; meanwhile nobody else can.

        A plan may have grown since, by seeds or points; what was planned before must still be in it, unchanged.

        Raises:
            OutputError: the folder is something else, a sweep of another plan, or another process works on it.
        """
        if not folder.exists():
            with folder_aside(folder) as aside:
                cls(aside, plan, {})._write()
                replace_folder(aside, folder)
        with lock(folder, wait=False):
            try:
                record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
                status = {run["name"]: Status(run["status"], run.get("reason", "")) for run in record["runs"]}
            except (OSError, ValueError, KeyError, TypeError):
                raise OutputError(f"{folder} exists already and is no sweep: choose another name with --name") from None
            planned = {run.name: run.config for run in plan.runs}
            for name in status:
                _refuse_other_plan(folder, name, planned.get(name))
            sweep = cls(folder, plan, status)
            sweep._write()
            yield sweep

    def run(self, planned: PlannedRun) -> Path:
        """The folder of a run."""
        return self.folder / planned.name

    def toml(self, planned: PlannedRun) -> Path:
        """The configuration that a run is to start from."""
        return self.folder / "plan" / f"{planned.name}.toml"

    def log(self, planned: PlannedRun) -> Path:
        """What a run printed."""
        return self.folder / "plan" / f"{planned.name}.log"

    @property
    def decided(self) -> Path:
        """How all runs compute, once that is decided."""
        return self.folder / "plan" / "decided.json"

    def status_of(self, planned: PlannedRun) -> Status:
        """What became of a run."""
        return self.status.get(planned.name, Status())

    def left(self, *, retry: bool = False) -> list[PlannedRun]:
        """What is still to be run; with ``retry`` what has failed as well."""
        for planned in self.plan.runs:
            is_done = self.status_of(planned).word == "done"
            if is_done and not self.run(planned).is_dir():  # somebody deleted it
                self.status[planned.name] = Status()
            elif not is_done and is_finished(self.run(planned)):  # a kill came between its end and our note of it
                self.status[planned.name] = Status("done")
        unfinished = {"planned", "failed"} if retry else {"planned"}
        return [planned for planned in self.plan.runs if self.status_of(planned).word in unfinished]

    def execute(
        self,
        works: Sequence[Work],
        executor: Executor,
        *,
        at_once: int,
        say: Callable[[Work], None],
        follow: Callable[[Sequence[Work]], None],
    ) -> str | None:
        """Run what is given, noting what becomes of each; the name of the signal that stopped it, if one did.

        Args:
            say: told each run that has ended, when its status is known.
            follow: see ``run_all``.
        """

        def note(work: Work, code: int, asked: bool) -> None:
            if code == 0:
                self.status[work.name] = Status("done")
            elif not asked and code not in STOPPED:
                self.status[work.name] = Status("failed", failure(code, work.log))
            self._note()
            say(work)

        return run_all(works, executor, at_once=at_once, on_end=note, follow=follow)

    def _write(self) -> None:
        with writing(self.folder):
            (self.folder / "plan").mkdir(exist_ok=True)
        for planned in self.plan.runs:
            if not self.toml(planned).exists():
                write_text(self.toml(planned), dump_toml(planned.config))
        self._note()

    def _note(self) -> None:
        plan = self.plan
        record: dict[str, Any] = {
            "format": 1,
            "recipe": plan.recipe,
            "command": plan.command,
            "seeds": list(plan.seeds),
            "points": [{"name": point.name, "settings": dict(point.settings)} for point in plan.points],
            "runs": [
                {"name": run.name, "point": run.point, "seed": run.seed, "status": self.status_of(run).word}
                | ({"reason": self.status_of(run).reason} if self.status_of(run).reason else {})
                for run in plan.runs
            ],
        }
        write_text(self.folder / "sweep.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def is_finished(run: Path) -> bool:
    """Whether a run has a whole checkpoint of its last step."""
    if not (run / "config.toml").is_file():
        return False
    directory = RunDirectory(run)
    try:
        return read_state(directory.find("last"))["step"] >= directory.config.train.steps
    except CheckpointError:
        return False


def prepare_data(
    plan: Plan, corpora: Path, *, say: Callable[[str], None], advance: Callable[[str, int, int], None]
) -> None:
    """Tokenise whatever the runs will read, once, so that they do not all do it at the same time."""
    seen: set[str] = set()
    for planned in plan.runs:
        config = planned.config
        key = config.data.model_dump_json() + (str(config.seed) if isinstance(config.data, ZeroOneData) else "")
        if key not in seen:
            seen.add(key)
            open_source(config, corpora, say=say, advance=advance)


def _refuse_other_plan(folder: Path, name: str, config: RunConfig | None) -> None:
    remedy = "choose another name with --name, or delete it"
    if config is None:
        raise OutputError(f"{folder} is a sweep that has {name}, which this command leaves out: {remedy}")
    file = folder / "plan" / f"{name}.toml"
    before, now = (flatten(c.model_dump(mode="json")) for c in (validate(load_toml(file), origin=str(file)), config))
    for setting in {**before, **now}:
        was, is_now = before.get(setting), now.get(setting)
        if was != is_now:
            raise OutputError(f"{folder} is a sweep whose {name} has {setting} = {was}, not {is_now}: {remedy}")
