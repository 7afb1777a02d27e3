"""The page of `bonsai profile`: where the time of a step goes, as bars."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bonsaigpt.files import write_text
from bonsaigpt.measure.anatomy import GROUPS, PYTHON, UNACCOUNTED, WAITING, Operator
from bonsaigpt.measure.profile import Profile
from bonsaigpt.recipes import flatten
from bonsaigpt.report.curves import WIDE, Curve, chart
from bonsaigpt.report.markup import Bar, bars, document, figures, panel, settings_table, swatch, text
from bonsaigpt.report.page import shown
from bonsaigpt.trace import MARKS
from bonsaigpt.units import named, quantity, rate, size

__all__ = ["part_names", "short_name", "write_profile"]

_COLOURS = {
    "matrix products": "var(--c0)",
    "attention": "var(--c2)",
    "normalisation": "var(--c4)",
    "elementwise": "var(--c1)",
    "fused kernels": "var(--c5)",
    "loss": "var(--c7)",
    "optimizer": "var(--c3)",
    "data": "var(--c6)",
    "copies": "color-mix(in srgb, var(--c1) 45%, var(--paper))",
    "other": "color-mix(in srgb, var(--c5) 45%, var(--paper))",
    PYTHON: "var(--soft)",
    WAITING: "color-mix(in srgb, var(--soft) 45%, var(--paper))",
    UNACCOUNTED: "var(--ink)",
}


def write_profile(profile: Profile, path: Path, *, name: str, about: str, command: Sequence[str], top: int) -> Path:
    """Write the page in one step and return its path.

    Args:
        command: the words that made the profile.
        top: operators in each table.

    Raises:
        OutputError: the page cannot be written.
    """
    parts = [
        _head(profile, name, about),
        _key_figures(profile),
        _groups(profile),
        _anatomy(profile),
        _products(profile),
        _memory(profile),
        _operators(profile, top),
        _commands(command),
        _environment(profile),
    ]
    write_text(path, document(f"{name}: profile · BonsaiGPT", "\n".join(filter(None, parts))))
    return path


def short_name(operator: str) -> str:
    """An operator's name without the path of autograd's own call, and without the hash of a compiled graph."""
    name = operator.replace("autograd::engine::evaluate_function: ", "autograd: ")
    return re.sub(r"^## Call (\w+ \w{6})\w* ##$", r"\1", name)


def part_names(parts: dict[str, float]) -> list[str]:
    """The parts of a step in their order, what belongs to none last."""
    return [mark for mark in MARKS if mark in parts] + ([""] if "" in parts else [])


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _head(profile: Profile, name: str, about: str) -> str:
    rows, length = profile.shape
    words = [
        f"{named(profile.steps, 'step')} of {rows} × {length} tokens recorded, from step {profile.at:,} on",
        str(profile.environment.get("device", "")),
        _threads(profile),
    ]
    said = f'<p class="about">{text(about)}</p>' if about else ""
    line = " · ".join(text(word) for word in words if word)
    return f'<header><h1>{text(name)}: profile</h1>{said}<p class="status">{line}</p></header>'


def _threads(profile: Profile) -> str:
    count = profile.anatomy.threads
    return f"{named(count, 'thread')} at work"


def _workers_words(profile: Profile) -> str:
    count = profile.anatomy.threads
    return f"of tensors, {count} workers at once" if count > 1 else "of tensors"


def _key_figures(profile: Profile) -> str:
    low, high = min(profile.windows), max(profile.windows)
    flops = sum(profile.flops.values())
    found = profile.anatomy
    return figures(
        [
            ("A step", f"{_ms(profile.seconds)} ms", f"{_ms(low)} to {_ms(high)}, without the profiler"),
            ("Tokens a second", f"{profile.tokens / profile.seconds:,.0f}", f"{profile.tokens:,} a step"),
            (
                "MFU",
                f"{profile.mfu:.1%}",
                f"{rate(profile.flops_per_second)} of {rate(profile.peak_flops)}",
            ),
            (
                "Of the roofline",
                f"{profile.roofline_share:.1%}",
                f"its products need {_ms(profile.bound)} ms at least",
            ),
            ("Accounted for", f"{found.accounted:.1%}", "of the recorded time of all threads"),
            ("In operators", f"{found.in_operators:.1%}", "the rest is Python and waiting"),
            ("Operations", quantity(flops, "FLOP"), f"a step; {quantity(flops / profile.tokens, 'FLOP')} a token"),
            ("Peak memory", size(profile.peak_memory), _workers_words(profile)),
        ]
    )


# ------------------------------------------------------------------ time


def _groups(profile: Profile) -> str:
    found = profile.anatomy
    parts = ["<section><h2>Where the time goes</h2>", f'<p class="note">{_time_note(profile)}</p>']
    if found.device is not None:
        parts += ["<h3>On the device</h3>", _group_bars(found.groups(device=True), found.wall), "<h3>On the host</h3>"]
    host = {group: seconds / found.threads for group, seconds in found.groups().items()}
    return "".join([*parts, _group_bars(host, found.wall), "</section>"])


def _time_note(profile: Profile) -> str:
    found = profile.anatomy
    slower = found.wall / profile.seconds
    several = f"Times of {found.threads} threads are averaged, so that they" if found.threads > 1 else "Times"
    return (
        f"{several} sum to the recorded step, {_ms(found.wall)} ms by the clock; it took {slower:.2f} times as long as "
        "one that nobody recorded. Each moment counts for the innermost operator that runs."
    )


def _group_bars(groups: dict[str, float], wall: float) -> str:
    longest = max(groups.values())
    rows = [
        Bar(
            name=group,
            hint=GROUPS[group],
            colour=_COLOURS[group],
            segments=[(_COLOURS[group], max(0.0, seconds) / longest, GROUPS[group])],
            cells=[_ms(seconds), f"{seconds / wall:.1%}"],
        )
        for group, seconds in groups.items()
        if abs(seconds) > 5e-4 * wall or group == UNACCOUNTED
    ]
    return bars(["ms", "share"], rows)


def _anatomy(profile: Profile) -> str:
    found = profile.anatomy
    parts = ["<section><h2>Anatomy of a step</h2>", '<p class="note">In the colours of the bars above.</p>']
    if found.device is not None:
        parts += ["<h3>On the device</h3>", _part_bars(found.device, found.wall), "<h3>On the host</h3>"]
    host = {part: {g: s / found.threads for g, s in groups.items()} for part, groups in found.host.items()}
    return "".join([*parts, _part_bars(host, found.wall), "</section>"])


def _part_bars(table: dict[str, dict[str, float]], wall: float) -> str:
    totals = {part: sum(groups.values()) for part, groups in table.items()}
    longest = max(totals.values())
    rows = [
        Bar(
            name=part or "between them",
            segments=[
                (_COLOURS[group], max(0.0, seconds) / longest, f"{group}: {_ms(seconds)} ms")
                for group in GROUPS
                if (seconds := table[part].get(group, 0.0))
            ],
            cells=[_ms(totals[part]), f"{totals[part] / wall:.1%}"],
        )
        for part in part_names(totals)
    ]
    return bars(["ms", "share"], rows)


# ------------------------------------------------------------------ the machine


def _products(profile: Profile) -> str:
    machine = profile.machine
    longest = max(max(p.seconds or 0.0, p.alone or 0.0, p.bound) for p in profile.products)
    rows = []
    for one in profile.products:
        products = one.products
        ticks = [(one.bound / longest, f"at least: {_ms(one.bound)} ms")]
        if one.alone is not None:
            ticks.append((one.alone / longest, f"alone: {_ms(one.alone)} ms"))
        rows.append(
            Bar(
                name=", ".join(products.kinds) if products.sides else "attention",
                hint="forward, and the gradients of both factors",
                segments=[(_COLOURS["matrix products"], (one.seconds or 0.0) / longest, "in the recorded step")],
                ticks=ticks,
                cells=[
                    "" if products.sides is None else f"{products.count} × {products.sides[0]} × {products.sides[1]}",
                    f"{products.flops / 1e9:.3g}",
                    f"{products.intensity:.0f}",
                    _ms(one.bound),
                    "–" if one.alone is None else _ms(one.alone),
                    "–" if one.seconds is None else _ms(one.seconds),
                ],
            )
        )
    note = (
        f"Measured here: {rate(machine.flops)} in the fastest matrix product, against which MFU is "
        f"{profile.mfu_measured:.1%}, and {quantity(machine.bandwidth, 'B/s')} of memory traffic; one limit meets the "
        f"other at {machine.ridge:.0f} operations a byte. The ticks mark the least time by that roofline, and the time "
        "of the same products alone, one after another. Times in ms."
    )
    header = ["matrices", "GFLOP", "FLOP/byte", "at least", "alone", "in the step"]
    ceiling = str(profile.environment.get("ceiling", ""))
    said = f'<p class="note">The ceiling of MFU: {text(ceiling)}.</p>' if ceiling else ""
    return (
        f'<section><h2>Products against the machine</h2><p class="note">{text(note)}</p>{said}'
        f"{bars(header, rows)}</section>"
    )


def _memory(profile: Profile) -> str:
    points = profile.memory
    if len(points) < 2:
        return ""
    curves: list[Curve] = []
    colours = {part: i for i, part in enumerate(part_names({p.part: 0.0 for p in points}))}
    start = 0
    for i in range(1, len(points) + 1):
        if i < len(points) and points[i].part == points[start].part:
            continue
        # Held bytes change in steps: each lasts until the next, also into the next part.
        piece = points[start : min(i + 1, len(points))]
        at = np.repeat([1e3 * p.seconds for p in piece], 2)[1:]
        held = np.repeat([p.bytes / 2**20 for p in piece], 2)[:-1]
        curves.append(Curve(series=(at, held), colour=colours[points[start].part]))
        start = i
    drawing = chart(
        curves, name="memory", label="Memory held by tensors over a step", x_label="ms", size=WIDE, from_zero=True
    )
    words = "".join(f"<span>{swatch(i)}{text(part or 'between')}</span>" for part, i in colours.items())
    rest, peak = points[0].bytes / 2**20, max(p.bytes for p in points) / 2**20
    note = f"<span>{rest:,.1f} MiB between steps, {peak:,.1f} at the peak.</span>{words}"
    several = profile.anatomy.threads > 1
    return (
        '<section><h2>Memory over a step</h2><p class="note">Bytes of tensors as the allocator gave and took them'
        + (", for one worker with its part of the batch; each holds activations and gradients of its own" * several)
        + ".</p>"
        f"{panel('MiB held', note, drawing)}</section>"
    )


# ------------------------------------------------------------------ operators


def _operators(profile: Profile, top: int) -> str:
    found = profile.anatomy
    parts = [f"<section><h2>The {top} longest operators</h2>"]
    if found.device is not None:
        by_device = sorted(found.operators, key=lambda o: -o.device)[:top]
        parts += ["<h3>By time on the device</h3>", _operator_table(by_device, found.wall, 1, device=True)]
        parts.append("<h3>By time on the host</h3>")
    by_host = sorted(found.operators, key=lambda o: -o.host)[:top]
    return "".join([*parts, _operator_table(by_host, found.wall, found.threads, device=False), "</section>"])


def _operator_table(operators: Sequence[Operator], wall: float, threads: int, *, device: bool) -> str:
    def seconds(o: Operator) -> float:
        return (o.device if device else o.host) / threads

    longest = max((seconds(o) for o in operators), default=1.0) or 1.0
    rows = [
        Bar(
            name=short_name(o.name),
            colour=_COLOURS[o.group],
            hint=o.group,
            segments=[(_COLOURS[o.group], seconds(o) / longest, o.group)],
            cells=[f"{o.calls:,.0f}", _ms(seconds(o)), f"{seconds(o) / wall:.1%}"],
        )
        for o in operators
        if seconds(o)
    ]
    return bars(["calls", "ms", "share"], rows)


# ------------------------------------------------------------------ how it was made


def _commands(command: Sequence[str]) -> str:
    return (
        '<section><h2>Look closer</h2><dl class="commands">'
        f"<div><dt>The command that made this page</dt><dd><pre>{text(shlex.join(command))}</pre></dd></div>"
        "<div><dt>Every operator of every thread on one time line: open trace.json (or trace.json.gz) of this folder "
        "in ui.perfetto.dev or chrome://tracing</dt></div></dl></section>"
    )


def _environment(profile: Profile) -> str:
    rows = [(n, shown(value), "", False) for n, value in flatten(profile.environment).items() if value is not None]
    made = settings_table("Where it was measured", rows)
    return f'<section class="prose"><h2>Environment</h2>{made}</section>'
