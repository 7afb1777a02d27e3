"""``report.html``: what one run did, how it was made, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import Config
from bonsaigpt.files import write_text
from bonsaigpt.recipes import flatten
from bonsaigpt.report.curves import SMALL, WIDE, Curve, chart, seconds_axis, smoothed
from bonsaigpt.report.health import health_section
from bonsaigpt.report.history import History, Sample, read_history
from bonsaigpt.report.markup import document, figures, panel, settings_table, swatch, text
from bonsaigpt.units import duration, named, size

__all__ = ["write_report"]

_VALIDATION, _TRAINING = 0, 1  # colours
_MOST_SAMPLES = 40


def write_report(run: RunDirectory) -> Path:
    """Write RUN/report.html anew, in one step, and return its path.

    Raises:
        ConfigError: the run's config.toml cannot be used.
        OutputError: the page cannot be written; an older one is left as it was.
    """
    history = read_history(run)
    name = run.path.name or run.path.resolve().name
    parts = [
        _head(name, history),
        _key_figures(history),
        _curves(history),
        health_section(history.health, history.findings),
        _samples(history),
        _commands(run.path, history),
        _configuration(history),
        _environment(history),
    ]
    path = run.path / "report.html"
    write_text(path, document(f"{name} · BonsaiGPT", "\n".join(filter(None, parts))))
    return path


def _head(name: str, history: History) -> str:
    planned = history.config.train.steps
    if history.finished:
        status = f"All {planned:,} steps done"
    elif history.logs or history.evaluations:
        status = f"{history.steps:,} of {planned:,} steps so far"
    else:
        status = "No metrics yet"
    parts = [status, history.environment.get("device"), _started(history.environment)]
    about = f'<p class="about">{text(history.config.about)}</p>' if history.config.about else ""
    line = " · ".join(text(p) for p in parts if p)
    return f'<header><h1>{text(name)}</h1>{about}<p class="status">{line}</p></header>'


def _started(environment: dict[str, Any]) -> str:
    when = str(environment.get("started", ""))
    return f"started {when[:10]} {when[11:16]} UTC" if when.endswith("+00:00") else when and f"started {when}"


def _key_figures(history: History) -> str:
    loss, perplexity = history.score("loss"), history.score("perplexity")
    bits, exact = history.score("bits_per_byte"), history.score("exact")
    speed, memory = history.tokens_per_second, history.memory_mb
    entries = [
        (
            "Best validation loss",
            _number(loss, ".4f"),
            f"nats a token, at step {history.best['step']:,}" if history.best else "never evaluated",
        ),
        ("Perplexity", _number(perplexity, ",.2f"), "exp of that loss"),
    ]
    if exact is not None:
        entries.append(("Exact", f"{exact:.2%}", "of unseen rows entirely right"))
    else:
        entries.append(("Bits per byte", _number(bits, ".3f"), "comparable across tokenizers"))
    ordered, margin = history.score("ordered"), history.score("margin")
    if ordered is not None and margin is not None:
        meaning = f"of unseen ones: the chosen answer gained on the other, by {margin:.3f} on average"
        entries.append(("Pairs gained", f"{ordered:.2%}", meaning))
    model = history.config.model
    entries += [
        (
            "Parameters",
            _number(history.parameters, ","),
            f"{named(model.n_layer, 'layer')}, width {model.n_embd}, context {model.block_size}",
        ),
        ("Steps", f"{history.steps:,}", f"of {history.config.train.steps:,}; {history.tokens:,} tokens"),
        ("Training time", duration(history.seconds), "evaluation and saving left out"),
        ("Tokens a second", _number(speed, ",.0f"), "mean of the run"),
        ("Peak memory", size(memory * 2**20) if memory is not None else "–", "of the training process"),
    ]
    return figures(entries)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


# ------------------------------------------------------------------ curves


def _curves(history: History) -> str:
    if not history.logs and not history.evaluations:
        return (
            '<section><h2>Curves</h2><p class="note">This run has no metrics: it stopped before the first line was '
            "written, or metrics.jsonl is gone.</p></section>"
        )
    clip = history.config.optim.grad_clip
    divisor, unit = seconds_axis(history.seconds)
    x, y = history.validation(x="seconds")
    panels = [
        panel(
            "Validation loss against time",
            f"{text(unit.capitalize())} of training; evaluation is not counted.",
            chart(
                [Curve(series=(x / divisor, y), colour=_VALIDATION, best=True)],
                name="time",
                label=f"Validation loss against {unit} of training",
                x_label=unit,
            ),
        )
    ]
    rates = [Curve(series=history.training("lr"), colour=_TRAINING)]  # exact, so never smoothed
    norms, speeds = (smoothed(history.training(y), _TRAINING) for y in ("grad_norm", "tokens_per_second"))
    for key, title, note, curves, from_zero, limit in (
        ("lr", "Learning rate", "", rates, True, None),
        ("norm", "Gradient norm", f"Before clipping, which begins at {clip:g}." if clip else "", norms, False, clip),
        ("speed", "Tokens a second", "Training alone, between two lines of the log.", speeds, True, None),
    ):
        faint = " Smoothed; faint, as it was." if len(curves) > 1 else ""
        drawing = chart(
            curves,
            name=key,
            label=f"{title} against steps",
            x_label="steps",
            from_zero=from_zero,
            limit=limit or None,
        )
        panels.append(panel(title, note + faint, drawing))
    return f'<section><h2>Curves</h2>{_loss(history)}<div class="pair">{"".join(panels)}</div></section>'


def _loss(history: History) -> str:
    """The main chart, drawn twice: shrunk to a phone, the wide one could not be read."""
    raw = history.training("loss")
    training = smoothed(raw, _TRAINING)
    curves = [*training, Curve(series=history.validation(), colour=_VALIDATION, best=True)]
    label = "Training and validation loss against steps"
    drawings = [
        chart(curves, name=f"loss-{size[0]}", label=label, x_label="steps", size=size)
        for size in (WIDE, (SMALL[0], 300))
    ]
    words = [f"{swatch(_VALIDATION)}validation"] if history.evaluations else []
    if history.best:
        dot = f'<i class="swatch dot" style="color: var(--c{_VALIDATION})"></i>'
        words.append(f"{dot}best, {history.best['val_loss']:.4f} at step {history.best['step']:,}")
    if raw[0].size:
        words.append(f"{swatch(_TRAINING)}training" + (", smoothed (faint: as it was)" if len(training) > 1 else ""))
    note = "".join(f"<span>{w}</span>" for w in words)
    return panel("Loss, nats a token", note, *drawings)


# ------------------------------------------------------------------ samples


def _samples(history: History) -> str:
    samples = history.samples
    if not samples:
        return ""
    losses = {r["step"]: r["val_loss"] for r in history.evaluations}
    between = samples[1:-1]
    few = min(len(between), _MOST_SAMPLES)
    shown = [between[i * len(between) // few] for i in range(few)]
    parts = [_sample(samples[0], losses)]
    if between:
        count = "one" if len(between) == 1 else str(len(between))
        word = f"The {count} between" + (f", {len(shown)} of them" if len(shown) < len(between) else "")
        inner = "\n".join(_sample(s, losses) for s in shown)
        parts.append(f"<details><summary>{word}</summary>\n{inner}\n</details>")
    if len(samples) > 1:
        parts.append(_sample(samples[-1], losses))
    return "<section><h2>What it wrote as it learned</h2>\n" + "\n".join(parts) + "</section>"


def _sample(sample: Sample, losses: dict[int, float]) -> str:
    loss = f"loss {losses[sample.step]:.4f}" if sample.step in losses else ""
    return (
        f'<article class="sample"><header><b>Step {sample.step:,}</b>{loss}</header>'
        f"<pre>{text(sample.text.strip())}</pre></article>"
    )


# ------------------------------------------------------------------ how it was made


def _commands(folder: Path, history: History) -> str:
    run = shlex.quote(str(folder))
    entries = [("Let it write", f'bonsai sample {run} --prompt "..."')]
    if not history.finished:
        entries.insert(0, ("Go on with the training", f"bonsai train {run} --resume"))
    if command := history.environment.get("command"):
        entries.append(("The command that made it", str(command)))
    replay = shlex.quote(str(folder / "config.toml"))
    name = shlex.quote(f"{folder.resolve().name}-again")
    entries.append(("The same run once more, every setting as it was", f"bonsai train {replay} --name {name}"))
    items = "\n".join(f"<div><dt>{text(what)}</dt><dd><pre>{_words(how)}</pre></dd></div>" for what, how in entries)
    return f'<section><h2>Reproduce and go on</h2><dl class="commands">{items}</dl></section>'


def _words(command: str) -> str:
    """Lines may end between words alone: a browser would cut ``--name`` after its hyphens."""
    return " ".join(f"<span>{text(word)}</span>" for word in command.split(" "))


def _configuration(history: History) -> str:
    config = history.config
    sections: dict[str, list[tuple[str, str, str, bool]]] = {"run": []}
    for name, value, hint, differs in _settings(config, type(config)(), ""):
        section, _, rest = name.rpartition(".") if name.count(".") < 2 else name.partition(".")
        sections.setdefault(section or "run", []).append((rest, value, hint, differs))
    tables = "\n".join(settings_table(title, rows) for title, rows in sections.items())
    return (
        "<section><h2>Configuration</h2>"
        '<p class="note">Full ink where a setting is not the default. <code>config.toml</code> holds the same.</p>'
        f'<div class="columns">{tables}</div></section>'
    )


def _settings(config: Config, default: Config | None, prefix: str) -> Iterator[tuple[str, str, str, bool]]:
    """Dotted name, value, documentation, and whether it differs from the default, of all that is set.

    The fields of a variant that is not the default are compared with the variant's own defaults.
    """
    fields = type(config).model_fields
    for name in sorted(fields, key=lambda n: n != "kind"):  # a variant says first which one it is
        field = fields[name]
        value = getattr(config, name)
        if name == "about" or value is None:
            continue
        usual = getattr(default, name) if type(default) is type(config) else None
        if isinstance(value, Config):
            yield from _settings(value, usual, f"{prefix}{name}.")
            continue
        if type(default) is not type(config) and name != "kind" and not field.is_required():
            usual = field.get_default(call_default_factory=True)
        yield f"{prefix}{name}", shown(value), field.description or "", value != usual


def shown(value: object) -> str:
    """A setting as a reader expects it: strings in quotes only where white space would not be seen."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else f"{value}"


def _environment(history: History) -> str:
    rows = [
        (name, shown(value), "", False)
        for name, value in flatten(history.environment).items()
        if value is not None and name != "command"
    ]
    if not rows:
        rows = [("unknown", "environment.json is missing or cannot be read", "", False)]
    return f'<section class="prose"><h2>Environment</h2>{settings_table("Where it was trained", rows)}</section>'
