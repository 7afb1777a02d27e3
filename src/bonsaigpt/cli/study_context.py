"""`bonsai study context`: how far models reach, what helps, and how many steps a longer context takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bonsaigpt.cli.common import (
    Opened,
    Parser,
    add_placement,
    count_from,
    counts,
    open_model,
    progress_bar,
    runs_folder,
)
from bonsaigpt.cli.eval import source_of
from bonsaigpt.cli.studying import tell
from bonsaigpt.data.prepare import open_source
from bonsaigpt.errors import ConfigError, DataError, did_you_mean
from bonsaigpt.measure.kv import contiguous, cut
from bonsaigpt.study.context import ContextPoint, Reach, Trained, Way, ways
from bonsaigpt.study.context_page import ContextRun, ContextStudy, context_table, write_context

__all__ = ["run"]

_EXAMPLE = """  bonsai study context runs/shakespeare-char
  bonsai study context short long --steps 0,10,30,100,300
  bonsai study context linear --lengths 16,64,1024 --steps 0"""


def run(argv: list[str]) -> int:
    """The verb."""
    arguments = _parser().parse(argv)
    opened = [open_model(address, runs=arguments.runs) for address in dict.fromkeys(arguments.model)]
    lengths = _lengths(arguments, [model.config.block_size for model in opened])
    ids = _text(arguments, opened)
    rows = min(arguments.rows, (len(ids) - 1) // lengths[-1])
    if rows < 1:
        raise DataError(
            f"the text has {len(ids):,} tokens, but pieces of {lengths[-1]:,} are read: use shorter --lengths, or more "
            "text with --text FILE"
        )
    streams = cut(ids, rows, lengths[-1])
    chosen = [_ways(arguments, model) for model in opened]
    length = _stretch_to(arguments, [model.config.block_size for model in opened], lengths)
    with progress_bar(Console(stderr=True)) as advance:
        reaches = []
        for model, some in zip(opened, chosen, strict=True):
            engine, _ = model.on(arguments)
            reaches.append(Reach(engine, model.config, model.weights, streams, lengths))
            reaches[-1].read_all(some, advance=_of(model, advance))
        runs = []
        goal = _goal(opened, reaches, length)
        for model, some, reach in zip(opened, chosen, reaches, strict=True):
            raw, longer, named_goal = None, list[ContextPoint](), None
            if goal is not None and length is not None and model.config.block_size < length:
                named_goal = goal[0]
                reach.hold_against(length, goal[1])
            if not arguments.fast and lengths[-1] > model.config.block_size:
                raw = reach.raw_point(advance=partial(advance, f"{model.label}: from raw text"))
            if length is not None and model.config.block_size < length:
                longer = _stretched(arguments, model, reach, some, length, advance)
            runs.append(
                ContextRun(
                    label=model.label,
                    block=model.config.block_size,
                    home=reach.home,
                    points=reach.points() + longer,
                    raw=raw,
                    goal=named_goal,
                )
            )
    options = ["--lengths", ",".join(map(str, lengths)), "--rows", str(rows)]
    options += ["--text", str(arguments.text)] if arguments.text else []
    study = ContextStudy(runs=runs, lengths=lengths, tokens=streams[:, 1:].size, options=options)
    first = opened[0].run
    folder = arguments.out or (first.path / "studies" if first is not None else Path("."))
    folder.mkdir(parents=True, exist_ok=True)
    tell(context_table(study), study.verdict, write_context(study, folder))
    return 0


def _of(model: Opened, advance: Any) -> Callable[[str, int, int, str], None]:
    return lambda what, done, total, note: advance(f"{model.label}: {what}", done, total, note)


def _goal(opened: Sequence[Opened], reaches: Sequence[Reach], length: int | None) -> tuple[str, np.ndarray] | None:
    """Of the runs that were trained at this length or a longer one the best there, and its losses."""
    if length is None:
        return None
    there = zip(opened, reaches, strict=True)
    found = [(m.label.partition("@")[0], r.plainly(length)) for m, r in there if m.config.block_size >= length]
    return min(found, key=lambda one: one[1].mean(), default=None)


def _stretched(
    arguments: argparse.Namespace, model: Opened, reach: Reach, chosen: Sequence[Way], length: int, advance: Any
) -> list[ContextPoint]:
    """Every whole way after every number of steps; of a run that has data to go on with."""
    if model.run is None or not any(arguments.steps):
        return []
    saved = model.run.load(str(model.step))
    trained = Trained(
        config=model.run.config,
        optimizer=saved.optimizer,
        open=lambda config: open_source(config, arguments.corpora),
    )
    return [
        reach.trained_point(
            trained, way, length, steps, advance=partial(advance, f"{model.label}: {way.name}, {steps} steps")
        )
        for way in chosen
        if way.is_whole
        for steps in arguments.steps
        if steps
    ]


def _lengths(arguments: argparse.Namespace, blocks: list[int]) -> list[int]:
    least = min(blocks)
    chosen = arguments.lengths or [n for n in (least // 4, least // 2, *(least << i for i in range(4))) if n]
    chosen = sorted(set(chosen))
    for length in chosen:
        if chosen[-1] % length:
            raise ConfigError(
                f"--lengths: {length} does not divide {chosen[-1]}, and all lengths are to score the same tokens: use "
                f"e.g. {','.join(str(n) for n in (least, 2 * least, 4 * least))}"
            )
    return chosen


def _stretch_to(arguments: argparse.Namespace, blocks: list[int], lengths: Any) -> int | None:
    """The length that runs are stretched to: four times the shortest context, or the longest one below that."""
    if arguments.stretch:
        if arguments.stretch not in lengths:
            raise ConfigError(f"--stretch {arguments.stretch} is none of the lengths: add it to --lengths")
        return arguments.stretch
    return max((n for n in lengths if min(blocks) < n <= 4 * min(blocks)), default=None)


def _text(arguments: argparse.Namespace, opened: list[Opened]) -> np.ndarray:
    """One text of all models.

    Raises:
        DataError: they have different ones.
    """
    texts = [contiguous(source_of(model, arguments.text, arguments.corpora)) for model in opened]
    for model, text in zip(opened, texts, strict=True):
        if not np.array_equal(text, texts[0]):
            raise DataError(
                f"{model.label} and {opened[0].label} have other tokens to be scored on, so that their losses cannot "
                "be compared: study them one at a time"
            )
    return texts[0]


def _ways(arguments: argparse.Namespace, model: Opened) -> list[Way]:
    found = ways(model.config, None if model.run is None else model.run.config.train.memory)
    names = [way.name for way in found]
    for name in arguments.only:
        if name not in names:
            raise ConfigError(
                f"--only '{name}': {model.label} can be read in these ways: {', '.join(names)}."
                f"{did_you_mean(name, names)}"
            )
    return [way for way in found if way == found[0] or not arguments.only or way.name in arguments.only]


def _steps(words: str) -> list[int]:
    if not all(word.isdecimal() for word in words.split(",")):
        raise argparse.ArgumentTypeError(f"'{words}' are no steps: use whole numbers from 0 on, e.g. 0,10,30,100")
    return sorted({int(word) for word in words.split(",")})


def _parser() -> Parser:
    parser = Parser(
        "study context",
        "Read one text in windows of many lengths, as far as several times the context that a model was trained at, "
        "in every way that it has: positions running on, interpolated or scaled; through a cache with a window, with "
        "and without sinks; with a memory from block to block. Then train it on at a longer context, and tell how many "
        "steps that takes. Of several runs with one text, those that were trained at the longer context are what the "
        "others are held against. No run is written.",
        _EXAMPLE,
    )
    parser.add_argument("model", nargs="+", help="runs (RUN, RUN@last, RUN@500) or folders in Hugging Face's format")
    parser.add_argument("--text", type=Path, metavar="FILE", help="read this text instead of the validation split")
    parser.add_argument(
        "--lengths",
        type=counts,
        metavar="N,N,..",
        help="windows, in tokens; each divides the longest (default: the shortest context, a quarter to eight times)",
    )
    parser.add_argument("--rows", type=count_from(1), default=32, metavar="N", help="longest windows (default: 32)")
    parser.add_argument(
        "--stretch",
        type=count_from(2),
        metavar="N",
        help="train on at this length, in tokens (default: four times the shortest context)",
    )
    parser.add_argument(
        "--steps",
        type=_steps,
        metavar="N,N,..",
        default="0,10,30,100",
        help="of training at that length; 0 alone: do not train (default: 0,10,30,100)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WAY",
        help="of the ways to read on only this one, and the one that changes nothing; can be repeated",
    )
    parser.add_argument(
        "--fast", action="store_true", help="leave out the reference that reads each window anew from raw text"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: studies of the first run)")
    add_placement(parser)
    runs_folder(parser)
    return parser
