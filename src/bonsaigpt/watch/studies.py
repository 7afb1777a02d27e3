"""The studies of a run as points of a plot, each with the command that makes or measures it again."""

from __future__ import annotations

import csv
import math
import os
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
    columns: frozenset[str]
    """That a table of this kind has; that of a task's answers through caches, another kv.csv, has others."""
    x: str
    y: str
    x_label: str
    name: Callable[[Row], str]
    group: Callable[[Row], str]
    interval: Callable[[Row], tuple[float, float] | None]


def _margin(row: Row) -> tuple[float, float] | None:
    if not row["margin"]:
        return None
    return float(row["added"]) - float(row["margin"]), float(row["added"]) + float(row["margin"])


_KINDS = {
    "kv": _Kind(
        title="the cache",
        columns=frozenset({"policy", "bits_per_token", "added", "low", "high", "frontier", "command"}),
        x="bits_per_token",
        y="added",
        x_label="bits held a token of the training context",
        name=lambda row: row["policy"],
        group=lambda row: row["policy"].partition("(")[0],
        interval=lambda row: (float(row["low"]), float(row["high"])),
    ),
    "compress": _Kind(
        title="compression",
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
}


def studies_of(run: Path) -> list[dict[str, Any]]:
    """What can be drawn of a run: kind, title, and a stamp that changes with it."""
    found: list[dict[str, Any]] = []
    for kind, how in _KINDS.items():
        try:
            with (run / "studies" / f"{kind}.csv").open(encoding="utf-8", newline="") as file:
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
        with (run / "studies" / f"{kind}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        several = len({row.get("model") for row in rows}) > 1
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
                    "name": f"{row['model']}: {how.name(row)}" if several else how.name(row),
                    "group": how.group(row),
                    "command": row["command"],
                }
            )
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return {"title": how.title, "x_label": how.x_label, "y_label": "added loss, nats a token", "points": points}
