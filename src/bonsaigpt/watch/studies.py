"""The studies of a run as points of a plot, each with the command that makes or measures it again."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["read_study", "studies_of"]

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How to read the table of a kind of study; the lower and the further left, the better."""

    title: str
    file: str
    columns: frozenset[str]
    """That a table of this kind has, and no other of the same file."""
    x: str
    y: str
    x_label: str
    y_label: str = "added loss, nats a token"
    y_unit: str = "nats"
    model: str = "model"
    """The column that names the model, where a table has several."""
    name: Callable[[Row], str]
    group: Callable[[Row], str]
    interval: Callable[[Row], tuple[float, float] | None]


def _margin(row: Row, y: str = "added") -> tuple[float, float] | None:
    if not row["margin"]:
        return None
    return float(row[y]) - float(row["margin"]), float(row[y]) + float(row["margin"])


def _ends(row: Row) -> tuple[float, float] | None:
    return (float(row["low"]), float(row["high"])) if row["low"] else None


def _family(row: Row) -> str:
    """What a policy keeps, in whatever number and format: ``sinks+window`` of ``sinks(4)+window(28), int8``."""
    return re.sub(r"\([^)]*\)", "", row["policy"]).partition(",")[0]


_KINDS = {
    "kv": _Kind(
        title="the cache",
        file="kv",
        columns=frozenset({"policy", "bits_per_token", "added", "low", "high", "frontier", "command"}),
        x="bits_per_token",
        y="added",
        x_label="bits held a token of the training context",
        name=lambda row: row["policy"],
        group=_family,
        interval=_ends,
    ),
    "kv-answers": _Kind(
        title="the cache and the answers",
        file="kv",
        columns=frozenset({"policy", "bits", "lost", "margin", "frontier", "command"}),
        x="bits",
        y="lost",
        x_label="bits held at the last token",
        y_label="problems that are no longer solved, as a share",
        y_unit="of the problems",
        name=lambda row: row["policy"],
        group=_family,
        interval=lambda row: _margin(row, "lost"),
    ),
    "compress": _Kind(
        title="compression",
        file="compress",
        columns=frozenset(
            {"structure", "share", "heal", "stored", "added", "margin", "frontier", "becomes", "command"}
        ),
        x="stored",
        y="added",
        x_label="values stored",
        name=lambda row: (
            "dense"
            if row["structure"] == "dense"
            else f"{row['structure']}, {float(row['share']):.0%}, healed for {row['heal']} steps: {row['becomes']}"
        ),
        group=lambda row: row["structure"],
        interval=_margin,
    ),
    "context": _Kind(
        title="the context",
        file="context",
        columns=frozenset({"run", "way", "length", "steps", "added", "low", "high", "frontier", "command"}),
        x="length",
        y="added",
        x_label="tokens of the window",
        model="run",
        name=lambda row: f"{row['way']}, after {row['steps']} steps" if row["steps"] != "0" else row["way"],
        group=lambda row: row["way"],
        interval=_ends,
    ),
}


def studies_of(run: Path) -> list[dict[str, Any]]:
    """What can be drawn of a run: kind, title, and a stamp that changes with it."""
    found: list[dict[str, Any]] = []
    for kind, how in _KINDS.items():
        try:
            with (run / "studies" / f"{how.file}.csv").open(encoding="utf-8", newline="") as file:
                stamp = os.fstat(file.fileno()).st_mtime_ns
                columns = next(csv.reader(file), [])
        except (OSError, ValueError, csv.Error):
            continue
        if not how.columns.issubset(columns):
            continue
        found.append({"study": kind, "title": how.title, "stamp": str(stamp)})
    return found


def read_study(run: Path, kind: str) -> dict[str, Any] | None:
    """The points of a study; None if there is no such study, or its table is damaged."""
    if kind not in _KINDS:
        return None
    how = _KINDS[kind]
    points: list[dict[str, Any]] = []
    try:
        with (run / "studies" / f"{how.file}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        several = len({row.get(how.model) for row in rows}) > 1
        for row in rows:
            x, y = float(row[how.x]), float(row[how.y] or 0)
            if not (math.isfinite(x) and math.isfinite(y)):
                continue
            points.append(
                {
                    "x": x,
                    "y": y,
                    "interval": how.interval(row),
                    "front": row["frontier"] == "1",
                    "name": f"{row[how.model]}: {how.name(row)}" if several else how.name(row),
                    "group": how.group(row),
                    "command": row["command"],
                }
            )
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    labels = {"title": how.title, "x_label": how.x_label, "y_label": how.y_label, "y_unit": how.y_unit}
    return labels | {"points": points}
