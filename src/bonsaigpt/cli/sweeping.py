"""What `bonsai sweep` and `bonsai study` share: flags, configurations of points, and one live line over all runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_settings import CliSettingsSource
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bonsaigpt import recipes
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import count_from, progress_bar, run_folder, runs_folder, settings, whisper
from bonsaigpt.cli.member import Decision, Member
from bonsaigpt.config import RunConfig
from bonsaigpt.errors import BonsaiError, ConfigError
from bonsaigpt.recipes import flatten
from bonsaigpt.study.cluster import SubmititExecutor
from bonsaigpt.study.decided import Decided, decider, hangs_on_the_clock, read_decided
from bonsaigpt.study.plan import Plan, PlannedRun, Settings
from bonsaigpt.study.pool import Executor, ProcessPool, Work, failure, run_all
from bonsaigpt.study.progress import Follower
from bonsaigpt.study.results import read_result
from bonsaigpt.study.sweep import Status, Sweep, prepare_data

__all__ = ["add_sweep_flags", "configurer", "execute", "finish"]


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """Add what every verb takes that makes many runs."""
    parser.add_argument("--name", help="folder of all the runs (default: the names of the recipe and the verb)")
    parser.add_argument(
        "--seeds", type=count_from(1), default=1, metavar="N", help="repetitions of each point (default: 1)"
    )
    parser.add_argument(
        "--jobs",
        type=count_from(1),
        default=1,
        metavar="N",
        help="runs at once, which share the CPU's threads (default: 1)",
    )
    parser.add_argument("--retry", action="store_true", help="try again what has failed in an earlier call")
    parser.add_argument(
        "--executor",
        choices=["pool", "slurm", "local-submitit"],
        default="pool",
        help="processes here, or jobs of a cluster by submitit (extra `submitit`) (default: pool)",
    )
    parser.add_argument(
        "--submitit",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of submitit's: timeout_min (minutes), slurm_partition, gpus_per_node, cpus_per_task, mem_gb",
    )
    runs_folder(parser)


def configurer(
    arguments: argparse.Namespace, source: CliSettingsSource[Any], argv: list[str], *, taken: Collection[str]
) -> tuple[str, Callable[[Settings], RunConfig]]:
    """The recipe's short name, and what makes the configuration of some settings: as if they had been typed as flags
    behind all others.

    Raises:
        ConfigError: a flag sets what the sweep is to vary.
    """
    for name in flatten(settings(source, argv)):
        if name in taken:
            raise ConfigError(f"--{name} is a setting that varies from run to run here: leave the flag out.")
    recipe, short = arguments.recipe, Path(arguments.recipe).stem
    own = run_folder(recipe, arguments.runs) / "config.toml"
    if recipe not in recipes.names() and own.is_file():
        recipe, short = str(own), own.parent.name

    def configure(more: Settings) -> RunConfig:
        return recipes.load(recipe, settings(source, [*argv, *(f"--{name}={value}" for name, value in more.items())]))

    return short, configure


@contextmanager
def execute(plan: Plan, folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[Sweep, str | None]]:
    """Make a sweep, or go on with it; gives it with the name of the signal that stopped it, if one did."""
    executor, share = _executor(arguments, folder)
    console = Console()
    with progress_bar(console) as advance:
        prepare_data(
            plan,
            arguments.corpora,
            say=whisper(console),
            advance=advance,
        )
    with Sweep.open(folder, plan) as sweep:
        left = sweep.left(retry=arguments.retry)
        if before := len(plan.runs) - len(left):
            print(f"{before} of {len(plan.runs)} runs have ended before")
        stopped = _decide(sweep, left, executor, share, arguments.corpora, console)
        if stopped is None:
            decided = read_decided(sweep.decided)
            works = [
                Member(
                    run=sweep.run(planned),
                    config=sweep.toml(planned),
                    corpora=arguments.corpora,
                    flags=_flags(planned.config, decided, share),
                    log=sweep.log(planned),
                )
                for planned in left
            ]
            with _Live(sweep, console) as live:
                stopped = sweep.execute(works, executor, at_once=arguments.jobs, say=live.say, follow=live.follow)
        yield sweep, stopped


def _decide(
    sweep: Sweep, left: Sequence[PlannedRun], executor: Executor, share: int, corpora: Path, console: Console
) -> str | None:
    """Decide how all runs compute, if one of them is still to begin that leaves it open and nothing was decided before;
    the name of the signal that stopped it, if one did.

    Raises:
        BonsaiError: it failed.
    """
    fresh = [planned for planned in left if not sweep.run(planned).exists()]
    if not any(hangs_on_the_clock(planned.config) for planned in fresh) or sweep.decided.exists():
        return None
    planned = decider(sweep.plan.runs)
    say = whisper(console)
    say(f"deciding how all runs compute, by {planned.name}")
    work = Decision(
        file=sweep.decided,
        config=sweep.toml(planned),
        corpora=corpora,
        threads=0 if planned.config.train.threads else share,
        log=sweep.decided.with_suffix(".log"),
    )
    failed: list[int] = []

    def note(_: Work, code: int, asked: bool) -> None:
        if code and not asked:
            failed.append(code)

    stopped = run_all([work], executor, at_once=1, on_end=note, follow=lambda running: None)
    if failed:
        reason = failure(failed[0], work.log)
        raise BonsaiError(
            f"it could not be decided how all runs compute, by {planned.name} ({reason}): mend that, or leave nothing "
            "to decide, e.g. --train.compile off --train.precision fp32"
        )
    if (decided := read_decided(sweep.decided)) is not None:
        for name, value in decided.settings.items():
            say(f"{name} = {value} ({decided.why[name]})" if name in decided.why else f"{name} = {value}")
    return stopped


def _flags(config: RunConfig, decided: Decided | None, share: int) -> list[str]:
    """What a run starts with beside its own configuration."""
    settings = dict(decided.settings_for(config)) if decided is not None else {}
    if share and not config.train.threads:
        settings["train.threads"] = str(share)
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def finish(sweep: Sweep, stopped: str | None) -> int:
    """The last words, and the exit code.

    Raises:
        BonsaiError: not one run was finished, and at least one failed.
    """
    status = [sweep.status_of(planned) for planned in sweep.plan.runs]
    failed = [s.reason for s in status if s.word == "failed"]
    if stopped is not None:
        print(f"stopped, and all is saved. Go on with: {sweep.plan.command}")
        return {"SIGINT": 130, "SIGTERM": 143}[stopped]
    if failed and not any(s.word == "done" for s in status):
        raise BonsaiError(f"no run was finished; the first failed because: {failed[0]}")
    if failed:
        print(f"{len(failed)} of {len(status)} runs failed: {sweep.folder}/sweep.json says why, --retry tries again")
    return 0


def _executor(arguments: argparse.Namespace, folder: Path) -> tuple[Executor, int]:
    """Where to run, and how many CPU threads each run is to take (0: as it likes)."""
    if arguments.executor != "pool":
        options = dict(_option(text) for text in arguments.submitit)
        cluster = "slurm" if arguments.executor == "slurm" else "local"
        return SubmititExecutor(cluster, folder / "plan" / "submitit", options), 0
    if arguments.submitit:
        raise ConfigError("--submitit is for --executor slurm and local-submitit: leave it out.")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ProcessPool(), max(1, cpus // arguments.jobs) if arguments.jobs > 1 else 0


def _option(text: str) -> tuple[str, str | int]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--submitit {text} does not say KEY=VALUE: for example --submitit timeout_min=600.")
    return key, int(value) if value.isdecimal() else value


class _Live:
    """One bar over all runs, and a line for each that has ended."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep, self._console = sweep, console
        self._follower = Follower(sweep)
        self._runs = len(sweep.plan.runs)
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn(compact=True)
        best = TextColumn("{task.fields[best]}", markup=False)
        self._bar = Progress(*columns, best, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None, best="")

    def __enter__(self) -> _Live:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def follow(self, running: Sequence[Work]) -> None:
        """Redraw the bar."""
        now = self._follower.look([work.name for work in running])
        self._bar.update(
            self._task,
            description=f"{now.ended} of {self._runs} runs, {len(running)} under way",
            completed=now.steps,
            total=now.total,
            best=f"best so far {now.best[0]:.4f} ({now.best[1]})" if now.best else "",
        )

    def say(self, work: Work) -> None:
        """A line for a run that has ended."""
        status = self._sweep.status.get(work.name, Status())
        if status.word == "done":
            found = read_result(RunDirectory(self._sweep.folder / work.name))
            words = f"loss {found.final:.4f} after {found.seconds:,.1f} s"
        else:
            words = status.reason or "it can go on"
        word = {"planned": "[yellow]stopped[/]", "done": "[green]done[/]", "failed": "[red]failed[/]"}[status.word]
        self._console.print(f"{word} {escape(work.name)}: {escape(words)}", highlight=False, soft_wrap=True)
