"""`bonsai train --dry-run`: the table of what a run would be."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from bonsaigpt.cli.common import print_table
from bonsaigpt.config import ExpertsMLP, MuonMatrices
from bonsaigpt.measure.forecast import Forecast
from bonsaigpt.measure.scaling import Prediction
from bonsaigpt.trace import Room
from bonsaigpt.units import count, duration, named, quantity, size

__all__ = ["show_forecast"]

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
    shape = f"{named(model.n_layer, 'layer')} of width {model.n_embd}, block {model.block_size}"
    matrices = f"{count(found.matrix_parameters)} of them in matrices"
    if isinstance(mlp := model.mlp, ExpertsMLP):
        matrices += f" that a token meets, {mlp.active} of {mlp.experts} experts"
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
    seen += " by the end" if seen else ""
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
    evaluations = f"{named(times.evaluations, 'evaluation')} of {duration(times.evaluation)}"
    deciding = f"; {duration(times.deciding)} to decide how to compute" if times.deciding else ""
    most = ", at most: patience may end it" if train.patience else ""
    return [
        ("time", f"about {duration(times.total)}", f"{training}; {evaluations}{deciding}{most}"),
        ("MFU", f"{times.mfu:.0%}", environment["ceiling"]),
    ]


def _disk_row(found: Forecast) -> _Row:
    words = (
        f"at most {named(found.checkpoints, 'checkpoint')} of {size(found.checkpoint)}; {size(found.disk_free)} free"
    )
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
    train, matrices = found.config.train, found.config.optim.matrices
    settings = {
        "train.workers": ("workers", str(train.workers)),
        "train.micro_batch": ("micro-batch", str(train.micro_batch)),
        "train.precision": ("precision", environment["precision"] if train.precision == "auto" else train.precision),
        "train.compile": ("compile", train.compile),
    }
    if isinstance(matrices, MuonMatrices):
        settings["optim.matrices.precision"] = "Muon's precision", matrices.precision
    rows: list[_Row] = [("device", environment["device"], environment["why"])]
    return rows + [(name, value, why.get(setting, "of the run")) for setting, (name, value) in settings.items()]
