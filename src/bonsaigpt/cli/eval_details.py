"""`bonsai eval --details`, `--stride` and `--against`: target by target."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bonsaigpt.cli.common import Opened, open_model, print_table, progress_bar, tell
from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.data.target_scores import TargetScores
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import CheckpointError, DataError, GenerateError
from bonsaigpt.measure.details import Details, Figure, details_of, score_targets, strided
from bonsaigpt.measure.statistics import bootstrap

__all__ = ["run_details"]


def run_details(
    arguments: argparse.Namespace, argv: list[str], source_of: Callable[[Opened, Path | None, Path], BatchSource]
) -> int:
    """Print the figures with their errors, write the page, and hold the model against another one if asked."""
    opened = open_model(arguments.model, runs=arguments.runs)
    other = open_model(arguments.against, runs=arguments.runs) if arguments.against is not None else None
    if other is not None and other.tokenizer.to_json() != opened.tokenizer.to_json():
        raise CheckpointError(
            f"{other.label} has another tokenizer than {opened.label}, so their tokens cannot be paired: compare bits "
            "per byte of the same --text"
        )
    for each in (opened, *([other] if other is not None else [])):
        if each.run is not None and each.run.config.train.memory.kind != "none" and arguments.memory is None:
            raise GenerateError(
                f"{each.label} was trained with a memory, which --details, --stride and --against leave out: add "
                "--memory 0 to score it without"
            )
    source = source_of(opened, arguments.text, arguments.corpora)
    if source.parts:
        raise DataError("--details, --stride and --against are for one text, and this is a mixture: give --text FILE")
    scores = _scores(arguments, opened, source)
    details = details_of(scores, source)
    paired = None
    if other is not None:
        paired = _paired(_scores(arguments, other, source), scores)
    scored = f"{arguments.text or 'the validation split'}, {_words(arguments)}"
    if arguments.json:
        found: dict[str, Any] = {"model": opened.label, "stride": arguments.stride, **details.as_dict()}
        if other is not None and paired is not None:
            found["against"] = {"model": other.label, **paired}
        print(json.dumps(found))
    else:
        _print(opened, details, scored)
        if other is not None and paired is not None:
            print(
                f"{other.label} minus {opened.label}: {paired['difference']:+.4f} nats a token, 95 % interval "
                f"{paired['low']:+.4f} to {paired['high']:+.4f}, paired over blocks of text"
            )
    if opened.run is not None:
        from bonsaigpt.study.eval_page import write_details

        name = arguments.text.name.partition(".")[0] if arguments.text is not None else "validation"
        command = shlex.join(["bonsai", "eval", *argv])
        folder = opened.run.path / "evaluations" / name
        page = write_details(details, folder, label=opened.label, scored=scored, command=command)
        tell(f"report: {page}")
    return 0


def _words(arguments: argparse.Namespace) -> str:
    if arguments.stride is None:
        return "in windows that do not overlap"
    return f"in windows that begin every {arguments.stride} tokens, the last {arguments.stride} of each scored"


def _scores(arguments: argparse.Namespace, opened: Opened, source: BatchSource) -> TargetScores:
    engine, model = opened.on(arguments)
    if isinstance(source, TokenBatches) and opened.config.block_size < (source.eval_block_size or source.block_size):
        raise DataError(
            f"{opened.label} reads {opened.config.block_size} tokens at once, and the text is cut into windows of "
            f"{source.eval_block_size or source.block_size}: name the model with the shorter block first"
        )
    batches: Iterator[Batch] = source.validation()
    if arguments.stride is not None:
        if not isinstance(source, TokenBatches):
            raise DataError("--stride slides a window over a text, and this data is none: leave it out")
        batches = strided(source, arguments.stride)
    with progress_bar(Console(stderr=True)) as advance:
        return score_targets(engine, model, batches, total=source.validation_count(), advance=advance)


def _paired(theirs: TargetScores, ours: TargetScores) -> dict[str, float]:
    added_N = theirs.losses_N - ours.losses_N
    block = max(1, min(256, len(added_N) // 30))  # enough blocks for an interval, of a short text too
    low, high = bootstrap(added_N[None], block=block)
    return {"difference": float(np.mean(added_N)), "low": low, "high": high}


def _print(opened: Opened, details: Details, scored: str) -> None:
    print(f"{opened.label}, {scored}: {details.tokens:,} targets in {details.rows:,} rows")
    rows: list[tuple[str, Figure, str]] = [
        ("loss, nats a token", details.loss, ".4f"),
        ("perplexity", details.perplexity, ".2f"),
        ("first choice right", details.first_choice, ".4f"),
    ]
    if details.bits_per_byte is not None:
        rows.insert(2, ("bits per byte", details.bits_per_byte, ".4f"))
    if details.answers is not None:
        rows.insert(2, ("answers exactly right", details.answers, ".4f"))
    cells = [(name, format(f.value, form), "" if f.error is None else format(f.error, form)) for name, f, form in rows]
    cells.append(("calibration error (ECE)", f"{details.calibration_error:.4f}", ""))
    cells += [(f"loss after {s.first} to {s.last}", f"{s.loss.value:.4f}", _error(s.loss)) for s in details.positions]
    print_table(("", "value", "standard error"), cells)


def _error(figure: Figure) -> str:
    return "" if figure.error is None else f"{figure.error:.4f}"
