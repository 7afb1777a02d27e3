"""What a sweep is to run: the points of a grid, each with several seeds, each a whole configuration.

A plan is made before anything runs, so a setting that is misspelt or impossible at one point stops the whole sweep
while nothing is lost yet. The same command gives the same plan, and so finds the runs that an earlier call has made.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bonsaigpt.config import RunConfig, setting_names
from bonsaigpt.errors import ConfigError, did_you_mean

__all__ = ["Axis", "Plan", "PlannedRun", "Point", "Settings", "axis_word", "grid", "make_plan", "parse_axis"]

Settings = Mapping[str, str]
"""Dotted names of settings and what a user would type behind their flags."""

_LONGEST_NAME = 120


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it is to take."""

    setting: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One place of the grid: all runs of a point differ in nothing but the seed."""

    name: str
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run to be made."""

    name: str
    """Of its folder."""
    point: str
    seed: int
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs, seed by seed, so that after the first round every point has a figure."""

    recipe: str
    command: str
    """What makes it, and makes it go on."""
    points: Sequence[Point]
    """The first is the baseline that the others are held against."""
    seeds: Sequence[int]
    runs: Sequence[PlannedRun]


def parse_axis(text: str) -> Axis:
    """``optim.lr=1e-3,2e-3`` as the user types it. Commas within brackets or double quotes part no values:
    ``optim.lr_scale={},{"*.wte":2,"*.wpe":2}``, ``train.kv=full,"window(32), int4"``.

    Raises:
        ConfigError: no such setting, a whole section, or no two different values.
    """
    setting, equals, values = text.partition("=")
    if not equals or not setting:
        raise ConfigError(f"--grid {text} does not say SETTING=VALUE,VALUE: for example --grid optim.lr=1e-3,2e-3")
    known = setting_names()
    if setting not in known:
        raise ConfigError(f"there is no setting '{setting}' to sweep.{did_you_mean(setting, known)}")
    if within := [name for name in known if name.startswith(f"{setting}.")]:
        raise ConfigError(f"{setting} is a whole section: sweep one of its settings, e.g. {within[0]}")
    if setting == "seed":
        raise ConfigError("seeds are repetitions, not points of the grid: say how many with --seeds")
    found = _apart(values)
    if found is None:
        raise ConfigError(f"--grid {text} opens a bracket or a quote that it does not close")
    if "" in found:
        raise ConfigError(f"--grid {text} has an empty value: separate the values by single commas")
    if twice := [value for value, times in Counter(found).items() if times > 1]:
        raise ConfigError(f"--grid {text} lists {twice[0]} twice: leave one out")
    return Axis(setting, found)


def axis_word(text: str) -> str:
    """One value as a word that ``parse_axis`` reads as it is."""
    return text if _apart(text) == (text,) else json.dumps(text, ensure_ascii=False)


def _apart(values: str) -> tuple[str, ...] | None:
    """Values between commas, those in double quotes as JSON has them; None: something is left open."""
    found, start = [], 0
    opened: list[str] = []
    pairs = {"(": ")", "[": "]", "{": "}"}
    marks = re.compile(r'"(?:[^"\\]|\\.)*"|["(\[{)\]},]')
    for mark in marks.finditer(values):
        if mark[0] == '"':
            return None
        if mark[0] in pairs:
            opened.append(pairs[mark[0]])
        elif mark[0] == ",":
            if not opened:
                found.append(values[start : mark.start()])
                start = mark.end()
        elif mark[0] in pairs.values() and (not opened or opened.pop() != mark[0]):
            return None
    if opened:
        return None
    try:
        bare = [value.strip() for value in (*found, values[start:])]
        return tuple(json.loads(v) if len(v) > 1 and v[0] == v[-1] == '"' else v for v in bare)
    except ValueError:
        return None


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination, the last axis fastest; without an axis one point, the recipe itself.

    Raises:
        ConfigError: two axes of one setting.
    """
    names = [axis.setting for axis in axes]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ConfigError(f"--grid {twice[0]} is given twice: list all values of a setting behind one --grid")
    short = _short_names(names)
    points: list[Point] = []
    for values in itertools.product(*(axis.values for axis in axes)):
        label = ",".join(f"{short[name]}={value}" for name, value in zip(names, values, strict=True))
        points.append(Point(label or "recipe", dict(zip(names, values, strict=True))))
    return points


def make_plan(
    points: Iterable[Point],
    *,
    recipe: str,
    command: str,
    seeds: int,
    configure: Callable[[Settings], RunConfig],
) -> Plan:
    """Resolve every run of the plan.

    Args:
        seeds: repetitions of each point; the first has the recipe's own seed, the next one more, and so on.
        configure: the whole configuration that some settings on top of the recipe give.

    Raises:
        ConfigError: a point is impossible, or two are the same.
    """

    def resolve(point: Point, **more: str) -> RunConfig:
        try:
            return configure({**point.settings, **more})
        except ConfigError as error:
            raise ConfigError(f"the point {point.name} is impossible: {error}") from None

    points = list(points)
    first = resolve(points[0]).seed
    numbers = range(first, first + seeds)
    configs = {(point.name, seed): resolve(point, seed=str(seed)) for point in points for seed in numbers}
    for one, other in itertools.combinations(points, 2):
        if configs[one.name, first] == configs[other.name, first]:
            raise ConfigError(f"the points {one.name} and {other.name} are the same run: leave one of them out")
    runs = [
        PlannedRun(
            name=_folder_name(f"{point.name},seed={seed}" if point.settings else f"seed={seed}"),
            point=point.name,
            seed=seed,
            config=configs[point.name, seed],
        )
        for seed in numbers
        for point in points
    ]
    return Plan(recipe=recipe, command=command, points=points, seeds=list(numbers), runs=runs)


def _short_names(settings: Sequence[str]) -> dict[str, str]:
    """``lr`` for ``optim.lr``, ``mlp`` for ``model.mlp.kind``; the whole name where two would be called the same."""
    tails: dict[str, str] = {}
    for name in settings:
        parts = name.split(".")
        tails[name] = parts[-2] if parts[-1] == "kind" and len(parts) > 1 else parts[-1]
    times = Counter(tails.values())
    return {name: tail if times[tail] == 1 else name for name, tail in tails.items()}


def _folder_name(name: str) -> str:
    """The name, fit for a folder of every system and for the address of a run."""
    fit = re.sub(r"[^\w.+=,-]", "_", name)
    if fit == name and len(fit) <= _LONGEST_NAME:
        return fit
    return f"{fit[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
