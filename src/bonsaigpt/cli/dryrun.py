"""`bonsai train --dry-run`: the table of what a run would be."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from bonsaigpt.cli.common import print_table
from bonsaigpt.measure.forecast import Forecast
from bonsaigpt.measure.scaling import Prediction
from bonsaigpt.trace import Room

__all__ = ["duration", "show_forecast", "size"]

_Row = tuple[str, str, str]
"""What, how much, and words on it."""


def show_forecast(found: Forecast, *, why: dict[str, str], environment: dict[str, Any], console: Console) -> None:
    """Print everything, and after the table what should be thought over."""
    rows = [
        *_model_rows(found),
        *_memory_rows(found, environment),
        *_work_rows(found),
        *_time_rows(found, environment),
        _disk_row(found),
        _loss_row(found.loss),
        *_decision_rows(found, why, environment),
    ]
    print_table(("", "", ""), rows, words=True)
    for warning in found.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    console.print("nothing was trained, and no run was written", highlight=False)


def _model_rows(found: Forecast) -> list[_Row]:
    model = found.config.model
    shape = f"{model.n_layer} layer{'s' * (model.n_layer > 1)} of width {model.n_embd}, block {model.block_size}"
    matrices = f"{count(found.matrix_parameters)} of them in matrices"
    return [("parameters", count(found.parameters), f"{matrices}; {shape}")]


def _memory_rows(found: Forecast, environment: dict[str, Any]) -> list[_Row]:
    held, each = found.memory, " in each process" if environment["processes"] > 1 else ""
    words = f"a step at its fullest moment{each}; {_free(found.room)}"
    parts: list[_Row] = [(f"  {name}", size(part), "") for name, part in held.parts.items() if part > held.total / 1000]
    return [("memory", size(held.total), words), *parts]


def _free(room: Room | None) -> str:
    return "what is free is not known here" if room is None else f"{size(room.free)} free"


def _work_rows(found: Forecast) -> list[_Row]:
    seen = ", ".join(f"{name} {times:.2g} times" for name, times in found.passes.items())
    return [
        ("tokens", count(found.tokens), seen),
        ("work", quantity(found.flops, "FLOP"), f"{quantity(found.flops_per_token, 'FLOP')} a token in a full block"),
    ]


def _time_rows(found: Forecast, environment: dict[str, Any]) -> list[_Row]:
    times = found.times
    if times is None:
        return [("time", "unknown", "no step was timed, as it may not fit into memory")]
    train = found.config.train
    training = f"{duration(times.training)} of training, a full step takes {duration(times.step)}"
    evaluations = f"{times.evaluations} evaluations of {duration(times.evaluation)}"
    most = ", at most: patience may end it" if train.patience else ""
    return [
        ("time", f"about {duration(times.total)}", f"{training}; {evaluations}{most}"),
        ("MFU", f"{times.mfu:.0%}", environment["ceiling"]),
    ]


def _disk_row(found: Forecast) -> _Row:
    words = f"at most {found.checkpoints} checkpoints of {size(found.checkpoint)}; {size(found.disk_free)} free"
    return ("disk", size(found.disk), words)


def _loss_row(loss: Prediction | str) -> _Row:
    if isinstance(loss, str):
        return ("final loss", "unknown", loss)
    beyond = f"; extrapolated: {loss.beyond}" if loss.beyond else ""
    return (
        "final loss",
        f"about {loss.loss:.2f} nats",
        f"± {loss.margin:.2g}, from the fit of the track's runs{beyond}",
    )


def _decision_rows(found: Forecast, why: dict[str, str], environment: dict[str, Any]) -> list[_Row]:
    train = found.config.train
    named = {"workers": str(train.workers), "micro_batch": str(train.micro_batch), "compile": train.compile}
    rows: list[_Row] = [("device", environment["device"], environment["why"])]
    return rows + [(name.replace("_", "-"), value, why.get(name, "of the run")) for name, value in named.items()]


def count(number: float) -> str:
    """``812``, ``803.1 k``, ``1.54 M``."""
    return quantity(number, "").rstrip()


def quantity(number: float, unit: str) -> str:
    """With three digits and the prefix of a power of a thousand: ``8.12 TFLOP``."""
    for power, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def size(held: float) -> str:
    """``12.3 MiB``."""
    for power, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if held >= power:
            return f"{held / power:,.4g} {unit}"
    return f"{held:.0f} bytes"


def duration(seconds: float) -> str:
    """``40 ms``, ``2.3 s``, ``4 min 10 s``, ``7 h 5 min``, ``3 days 2 h``."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    for unit, below, (large, small) in ((60, 3600, ("min", "s")), (3600, 86400, ("h", "min"))):
        if seconds < below:
            whole, rest = divmod(round(seconds * 60 / unit), 60)
            return f"{whole} {large} {rest} {small}"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} day{'s' * (days > 1)} {hours} h"
