"""What memory a device has, and how many rows a pass may take so that a step fits into it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from bonsaigpt.config import LogitsDistill, RunConfig
from bonsaigpt.errors import BonsaiError, DeviceError
from bonsaigpt.spec import parameter_count
from bonsaigpt.trace import Room
from bonsaigpt.units import named, size

__all__ = ["Choice", "at_least", "at_most", "choose_rows", "fitting_rows", "host_room", "refuse_hopeless"]


def host_room() -> Room | None:
    """What this machine has, and what of it is free now; None where the system does not tell."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()]
        sizes = {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines}
        found = Room(sizes["MemAvailable"], sizes["MemTotal"] + sizes["SwapTotal"])
    except (OSError, KeyError, ValueError):  # no Linux
        return None
    return _in_container(found)


def _in_container(found: Room, root: Path = Path("/")) -> Room:
    """The same within the limits of this process' control groups (a container, a cluster's job), which /proc/meminfo
    does not know. A group is held by the limits of all groups around it as well, so the tightest one counts."""
    for group, version in _control_groups(root):
        with suppress(OSError, ValueError, KeyError):  # no such file here, or no limit: the word `max`
            most = int((group / version.limit).read_text())
            words = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # What files have left in memory the kernel can drop.
            held = int((group / version.usage).read_text()) - int(words[version.droppable])
            found = Room(min(found.free, max(0, most - held)), min(found.total, most))
    return found


@dataclass(frozen=True)
class _Version:
    """Where a version of Linux's control groups keeps its figures."""

    mount: str
    limit: str
    usage: str
    droppable: str
    """In memory.stat; groups below are in it."""


_V1 = _Version("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("", "memory.max", "memory.current", "inactive_file")


def _control_groups(root: Path) -> Iterator[tuple[Path, _Version]]:
    """The folders of this process' own group, and of all around it up to the mount, innermost first. In a container
    the path may be that of the machine outside: its folders are missing here, and the mount is the container's."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:path; version 2 has no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _V1 if controllers else _V2
        mount, own = root / "sys/fs/cgroup" / version.mount, PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):
            yield mount / group, version


@dataclass(frozen=True)
class Choice:
    """How many sequences of a whole block one pass takes."""

    rows: int
    why: str
    fits: bool
    """False if even so a step is likely to need more memory than there is."""


def choose_rows(
    config: RunConfig,
    count: Callable[[int], int],
    *,
    least: Callable[[], int],
    rows: int,
    own: int,
    workers: int,
    space: Room | None,
) -> Choice:
    """``rows``, or if a step of them does not fit, as many as do.

    Args:
        count: the bytes of a step whose passes take so many rows.
        least: of a step of single rows, computed in the most sparing way.
        own: rows of a step that this process takes.

    Raises:
        DeviceError: ``least`` is more than the device has altogether.
    """
    asked = config.train.micro_batch > 0
    why = "as asked" if asked else f"{named(rows, 'sequence')} in one pass"
    if space is None or at_most(config, rows=rows, workers=workers) <= space.usable:
        return Choice(rows, why, fits=True)
    try:
        needed = count(rows)
        if needed <= space.usable:
            return Choice(rows, why, fits=True)
        fitting = None if asked else fitting_rows(count, min(rows, own), space.usable)
        single = 0 if fitting else least()
    except BonsaiError:
        raise
    except Exception as error:  # that an engine cannot count on some device (fake tensors, XLA) is no reason to stop
        return Choice(rows, f"{why}; its memory could not be counted ({type(error).__name__})", fits=True)
    free = f"{size(space.free)} are free"
    if fitting:
        return Choice(
            fitting, f"{named(fitting, 'sequence')} in one pass: {rows} need {size(needed)}, {free}", fits=True
        )
    if single > space.total:
        remedies = ["--train.recompute true"] * (not config.train.recompute) + ["--train.workers 1"] * (workers > 1)
        raise DeviceError(
            f"a step needs {size(single)} of memory even with one sequence in a pass, and this device has "
            f"{size(space.total)}: try {', '.join([*remedies, 'a smaller model, a smaller model.block_size'])}"
        )
    if asked:
        return Choice(rows, f"as asked, but a step needs about {size(needed)}, {free}", fits=False)
    return Choice(1, f"one sequence in a pass, but even so a step needs {size(single)}, {free}", fits=False)


def refuse_hopeless(config: RunConfig, space: Room | None, *, shards: int) -> None:
    """Raise ``DeviceError`` if already ``at_least`` is more than the device has altogether."""
    if space is None or (needed := at_least(config, shards=shards)) <= space.total:
        return
    raise DeviceError(
        f"this model needs {size(needed)} of memory at least, to train on one sequence at a time, and this "
        f"device has {size(space.total)}: try a smaller model.n_embd, model.n_layer or model.block_size"
    )


def fitting_rows(count: Callable[[int], int], rows: int, usable: int) -> int | None:
    """The largest near-even part of ``rows`` whose count of bytes is at most ``usable``; None if one row's is more.

    What a pass holds is a fixed part and so much a row, but for the head, which changes its way with the number of
    logits: so a guess from two counts is counted again before it is believed.
    """
    count = cache(count)
    passes = 1
    while True:
        part = math.ceil(rows / passes)
        if count(part) <= usable:
            return part
        if part == 1:
            return None
        each = (count(part) - count(1)) / (part - 1)
        guess = 1 + max(0.0, usable - count(1)) / max(1.0, each)
        passes = min(rows, max(passes + 1, math.ceil(rows / guess)))


def at_most(config: RunConfig, *, rows: int, workers: int) -> int:
    """A generous bound on the bytes of ``count_step``: below it nobody needs to count, which takes some tenths of a
    second. Twice and more of all that the largest variant of a block keeps, in float32. There is none for a step with
    a teacher, which may be of any size."""
    if isinstance(config.optim.distill, LogitsDistill):
        return sys.maxsize
    model = config.model
    tokens = rows * model.block_size
    each = 40 * model.n_embd + 10 * model.experts * model.hidden + 8 * model.n_head * model.block_size
    activations = tokens * (model.n_layer * each + 10 * model.vocabulary_rows)
    return 4 * (workers * (2 * activations + 2 * parameter_count(model)) + 20 * parameter_count(model))


def at_least(config: RunConfig, *, shards: int) -> int:
    """A bound from below on the bytes of any step: weights, gradients and one moment in float32, and of a single
    sequence the input of each block in 16 bits. The vocabulary may be unknown yet, and then counts as one token."""
    model = config.model.model_copy(update={"vocab_size": config.model.vocab_size or 1})
    return 12 * parameter_count(model) // shards + 2 * model.n_layer * model.block_size * model.n_embd
