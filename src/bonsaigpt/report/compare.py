"""Runs side by side: the table of `bonsai compare`, and a page that lays their curves over each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.files import write_text, writing
from bonsaigpt.recipes import flatten
from bonsaigpt.report.history import History, read_history
from bonsaigpt.report.losses import loss_section
from bonsaigpt.report.markup import document, table, text
from bonsaigpt.report.page import shown

__all__ = ["comparison", "comparison_sections", "write_comparison"]

_NONE = "–"


def comparison(runs: Iterable[RunDirectory]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the key figures, one run a row, in the order given. A column that no run has is left out."""
    runs = list(runs)
    return _figures(_names(runs), [read_history(run) for run in runs])


def write_comparison(runs: Iterable[RunDirectory], path: Path) -> Path:
    """Write the page in one step, making its folder if need be, and return its path.

    Raises:
        ConfigError: the config.toml of a run cannot be used.
        OutputError: the page cannot be written.
    """
    runs = list(runs)
    names, histories = _names(runs), [read_history(run) for run in runs]
    parts = [
        f'<header><h1>{text(_title(names))}</h1><p class="status">{_status(names, histories)}</p></header>',
        _key_figures(names, histories),
        loss_section(names, [[history] for history in histories]),
        _differences(names, histories),
    ]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, document(f"{_title(names)} · BonsaiGPT", "\n".join(parts)))
    return path


def comparison_sections(names: Sequence[str], histories: Sequence[History]) -> str:
    """What the page says beside its curves: figures and differing settings, with names of the caller's."""
    if not names:
        return ""
    status = f'<p class="note">{_status(names, histories)}</p>'
    return _key_figures(names, histories) + status + _differences(names, histories)


def _key_figures(names: Sequence[str], histories: Sequence[History]) -> str:
    header, rows = _figures(names, histories)
    return f"<section><h2>Key figures</h2>{table(header, rows, swatches=True)}</section>"


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """Folder names, with as many parents as it takes to tell them apart; a run given twice is numbered."""
    paths = [Path(os.path.abspath(run.path)).parts for run in runs]
    label = {path: path[-1] for path in paths}
    for depth in range(2, max(map(len, paths), default=0) + 1):
        seen = Counter(label.values())
        label = {path: "/".join(path[-depth:]) if seen[name] > 1 else name for path, name in label.items()}
    names = [label[path] for path in paths]
    seen = Counter(names)
    return [f"{n} ({names[: i + 1].count(n)})" if seen[n] > 1 else n for i, n in enumerate(names)]


def _figures(names: Sequence[str], histories: Sequence[History]) -> tuple[list[str], list[list[str]]]:
    def score(name: str, form: str) -> Callable[[History], str | None]:
        return lambda h: None if (value := h.score(name)) is None else format(value, form)

    columns: dict[str, Callable[[History], str | None]] = {
        "parameters": lambda h: None if h.parameters is None else f"{h.parameters:,}",
        "best loss": score("loss", ".4f"),
        "bits/byte": score("bits_per_byte", ".3f"),
        "perplexity": score("perplexity", ",.2f"),
        "exact": score("exact", ".2%"),
        "ordered": score("ordered", ".2%"),
        "margin": score("margin", ".3f"),
        "steps": lambda h: f"{h.steps:,}" + ("" if h.finished else f"/{h.config.train.steps:,}"),
        "seconds": lambda h: f"{h.seconds:,.1f}",
        "tokens/s": lambda h: None if h.tokens_per_second is None else f"{h.tokens_per_second:,.0f}",
    }
    cells = {title: [column(h) for h in histories] for title, column in columns.items()}
    optional = {"bits/byte", "exact", "ordered", "margin"}
    kept = {t: c for t, c in cells.items() if t not in optional or any(c)}
    rows = [[name, *(c[i] or _NONE for c in kept.values())] for i, name in enumerate(names)]
    return ["run", *kept], rows


def _title(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{len(names)} runs"


def _status(names: Sequence[str], histories: Sequence[History]) -> str:
    scored = {n: loss for n, h in zip(names, histories, strict=True) if (loss := h.score("loss")) is not None}
    if not scored:
        return "None of them has been evaluated yet."
    if len(scored) == 1:
        return f"Only {text(*scored)} has been evaluated."
    first, second = sorted(scored, key=lambda n: scored[n])[:2]
    gap = scored[second] - scored[first]
    early = [n for n, h in zip(names, histories, strict=True) if n in scored and not h.finished]
    caution = f" Not finished: {text(', '.join(early))}." if early else ""
    return (
        f"Lowest validation loss: {text(first)}, {gap:.4f} nats below {text(second)}.{caution} "
        "A small gap may be chance: another seed moves a loss too."
    )


# ------------------------------------------------------------------ differences


def _differences(names: Sequence[str], histories: Sequence[History]) -> str:
    configs = [flatten(h.config.model_dump(mode="json", exclude_none=True)) for h in histories]
    environments = [flatten(h.environment) for h in histories]
    settings = _differing(configs, leave_out={"about"})
    surroundings = _differing(environments, leave_out={"command", "started"})
    warning = ""
    if {"data", "tokenizer"} & {row[0] for row in surroundings} and _other_text(environments):
        warning = (
            '<p class="note">These runs saw other text or another tokenizer: compare their bits per byte, on the '
            "same text, rather than their losses.</p>"
        )
    parts = [f"<section><h2>Settings in which they differ</h2>{warning}"]
    parts.append(table(["setting", *names], settings) if settings else '<p class="note">None.</p>')
    if surroundings:
        parts.append("</section><section><h2>Surroundings in which they differ</h2>")
        parts.append(table(["environment", *names], surroundings))
    return "".join(parts) + "</section>"


def _differing(records: Sequence[dict[str, Any]], *, leave_out: set[str]) -> list[list[str]]:
    """Rows of name and one value a record, where the values are not all the same."""
    keys = dict.fromkeys(key for record in records for key in record if key not in leave_out)
    rows = [[key, *(shown(r[key]) if r.get(key) is not None else _NONE for r in records)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _other_text(environments: Sequence[dict[str, Any]]) -> bool:
    """The fingerprint of data is the hash of the text, then how it is read: only the first part makes other losses."""
    texts = {(str(e.get("data", "")).partition("-")[0], e.get("tokenizer")) for e in environments}
    return len(texts) > 1
