"""`bonsai profile`: where the time of a step goes."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bonsaigpt import recipes
from bonsaigpt.checkpoint import Arrays, RunDirectory, check_weights
from bonsaigpt.cli.common import (
    Parser,
    add_recipe,
    add_settings,
    check_run_name,
    count_from,
    print_table,
    progress_bar,
    runs_folder,
    settings,
)
from bonsaigpt.cli.experiment import as_run, make_engine, open_data, with_overrides, with_vocabulary
from bonsaigpt.config import RunConfig
from bonsaigpt.files import folder_aside, replace_folder, write_text, writing
from bonsaigpt.measure.profile import Profile, profile
from bonsaigpt.report.profile import part_names, short_name, write_profile
from bonsaigpt.units import duration, named, quantity, rate, size

__all__ = ["run"]

_EXAMPLE = """  bonsai profile stdlib
  bonsai profile runs/stdlib --steps 10 --top 16
  bonsai profile stdlib --name wide --model.n_embd 512 --train.batch_size 16"""

_LARGE = 4 * 2**20
"""Bytes of a trace from which on it is compressed; trace viewers read both."""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "profile",
        "Record a few training steps and tell where their time goes: by part of the step, by kind of work, by "
        "operator, and against what this machine can do. The weights stay as they are. Writes profile/ into the run, "
        "or into NAME-profile for a recipe: a page, all figures, and a trace for ui.perfetto.dev.",
        _EXAMPLE,
    )
    add_recipe(parser)
    parser.add_argument("--name", help="write into NAME-profile (default: the run itself, or the recipe's name)")
    parser.add_argument(
        "--steps", type=count_from(1), default=5, help="steps to record, and four times as many to time (default: 5)"
    )
    parser.add_argument("--warmup", type=count_from(1), default=3, help="steps to take before (default: 3)")
    parser.add_argument(
        "--at", type=count_from(0), metavar="STEP", help="first step (default: so that the last are taken)"
    )
    parser.add_argument("--top", type=count_from(1), default=32, help="operators in the tables (default: 32)")
    runs_folder(parser)
    source = add_settings(parser)
    arguments = parser.parse(argv)
    config, weights, home = _subject(arguments, settings(source, argv))
    # torch warns of every thousandth block that was allocated before the memory was followed.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    console = Console()
    engine = make_engine(config)
    data = open_data(config, arguments.corpora, console)
    config = with_vocabulary(config, data)
    if weights is not None:
        check_weights(weights, config.model, origin=str(home))
    folder = home / "profile"
    with folder_aside(folder) as aside, writing(folder):
        with progress_bar(console) as advance:
            advance("deciding how to compute", 0, 0)
            config, why = engine.resolve(config, data.batch_at(config.train.steps - 1))
            found = profile(
                config,
                engine=engine,
                source=data,
                state=engine.init(config, weights),
                at=_first_step(config, arguments),
                steps=arguments.steps,
                warmup=arguments.warmup,
                chrome=aside / "trace.json",
                advance=advance,
            )
        found = replace(found, environment=found.environment | {"decisions": why})
        _compress(aside / "trace.json")
        name = home.name.removesuffix("-profile")
        command = ["bonsai", "profile", *argv]
        write_profile(found, aside / "profile.html", name=name, about=config.about, command=command, top=arguments.top)
        figures = {"command": command, **found.as_dict(), "config": config.model_dump(mode="json")}
        write_text(aside / "figures.json", json.dumps(figures) + "\n")
        replace_folder(aside, folder)
    _show(found, console, arguments.top)
    console.print(f"page: {folder / 'profile.html'}", highlight=False, markup=False)
    return 0


def _subject(arguments: argparse.Namespace, overrides: dict[str, Any]) -> tuple[RunConfig, Arrays | None, Path]:
    """What is profiled, the weights that it has already, and the folder that takes the result."""
    folder = as_run(arguments.recipe, arguments.runs, resume=False)
    weights: Arrays | None = None
    if folder is None:
        config, name = recipes.load(arguments.recipe, overrides), Path(arguments.recipe).stem
    else:
        directory = RunDirectory.open(folder)
        config, name = with_overrides(directory.config, overrides), folder.resolve().name
        if directory.steps():
            weights = directory.load(optimizer=False).model
    if arguments.name is not None:
        name = check_run_name(arguments.name)
    elif folder is not None:
        return config, weights, folder
    return config, weights, arguments.runs / f"{name}-profile"


def _first_step(config: RunConfig, arguments: argparse.Namespace) -> int:
    """The last steps of the run are those whose batches have their full size, if there is a ramp."""
    if arguments.at is not None:
        return arguments.at
    return max(0, config.train.steps - arguments.warmup - 5 * arguments.steps)


def _compress(path: Path) -> None:
    if path.stat().st_size < _LARGE:
        return
    with path.open("rb") as plain, gzip.open(path.with_name(f"{path.name}.gz"), "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed)
    path.unlink()


# ------------------------------------------------------------------ the terminal


def _show(found: Profile, console: Console, top: int) -> None:
    for line in _summary(found):
        console.print(line, highlight=False, soft_wrap=True)
    _table(*_time_table("part of the step", lambda **where: found.anatomy.parts(**where), found))
    _table(*_time_table("group", lambda **where: found.anatomy.groups(**where), found))
    _table(*_product_table(found))
    for device in [False] if found.anatomy.device is None else [True, False]:
        _table(*_operator_table(found, top, device=device))


def _table(header: list[str], rows: list[list[str]]) -> None:
    print()
    print_table(header, rows)


def _summary(found: Profile) -> list[str]:
    anatomy, machine = found.anatomy, found.machine
    low, high = min(found.windows), max(found.windows)
    rows, length = found.shape
    return [
        f"[bold]{duration(found.seconds)}[/] a step of {rows} x {length} tokens ({duration(low)} to "
        f"{duration(high)}), {found.tokens / found.seconds:,.0f} tokens/s",
        f"[bold]MFU {found.mfu:.1%}[/]: {rate(found.flops_per_second)}; {escape(str(found.environment['ceiling']))}",
        *(
            [f"     {found.mfu_measured:.1%} of {rate(machine.flops)}, the fastest product measured here"]
            if machine.flops != found.peak_flops
            else []
        ),
        f"[bold]{found.roofline_share:.1%} of the roofline[/]: its products need {duration(found.bound)} at least, "
        f"at {rate(machine.flops)} and {quantity(machine.bandwidth, 'B/s')}",
        f"[bold]{anatomy.accounted:.1%} accounted for[/], {anatomy.in_operators:.1%} in operators, of the time of "
        f"{named(anatomy.threads, 'thread')}; recorded, a step took {duration(anatomy.wall)}",
        f"{size(found.peak_memory)} of tensors at the peak, {size(found.memory[0].bytes)} between steps",
    ]


_Rows = tuple[list[str], list[list[str]]]
"""Header and body of a table."""


def _time_table(title: str, times: Callable[..., dict[str, float]], found: Profile) -> _Rows:
    """Rows of what ``times`` names, on the host (a mean over threads) and on the device if there is one."""
    host = {name: seconds / found.anatomy.threads for name, seconds in times(device=False).items()}
    device = times(device=True) if found.anatomy.device is not None else {}
    names = part_names(host) if "" in host else list(host)
    body: list[list[str]] = []
    for name in names:
        columns = [host.get(name, 0.0), *([device.get(name, 0.0)] if device else [])]
        if any(columns):
            body.append([name or "between them", *(word for s in columns for word in _time(s, found))])
    return [title, *(["host ms", "share", "device ms", "share"] if device else ["ms", "share"])], body


def _product_table(found: Profile) -> _Rows:
    body = [
        [
            ", ".join(p.products.kinds),
            f"{p.products.flops / 1e9:.3g}",
            f"{p.products.intensity:.0f}",
            *("–" if s is None else f"{1e3 * s:.2f}" for s in (p.bound, p.alone, p.seconds)),
        ]
        for p in found.products
    ]
    return ["products", "GFLOP", "FLOP/byte", "at least ms", "alone ms", "in the step ms"], body


def _operator_table(found: Profile, top: int, *, device: bool) -> _Rows:
    threads = 1 if device else found.anatomy.threads
    times = {o: (o.device if device else o.host) / threads for o in found.anatomy.operators}
    longest = sorted((o for o in times if times[o]), key=lambda o: -times[o])[:top]
    body = [[short_name(o.name), o.group, f"{o.calls:,.0f}", *_time(times[o], found)] for o in longest]
    return ["operator", "group", "calls", "device ms" if device else "ms", "share"], body


def _time(seconds: float, found: Profile) -> list[str]:
    return [f"{1e3 * seconds:.2f}", f"{seconds / found.anatomy.wall:.1%}"]
