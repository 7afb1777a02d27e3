"""The heat maps of a run's health: every look is drawn, what is wrong is said, and names are escaped."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt.measure.health import Finding, Health
from bonsaigpt.report.health import health_section


def look(step: int, dead: float = 0.0, layers: int = 2) -> Health:
    names = ["wte", *(f"h.{i}.mlp.c_fc" for i in range(layers))]
    values: dict[str, float | None] = {name: 10.0**-i for i, name in enumerate(names)}
    return Health(
        step=step,
        tokens=64,
        grad_norm=values,
        grad_rms=values,
        update_ratio=values | {"wte": None},
        effective_rank=dict.fromkeys(names, 0.5),
        dead=[dead] * layers,
        saturated=[0.0] * layers,
        entropy=[[1.0, 0.5]] * layers,
        balance={},
        energy={},
    )


FINDING = Finding(
    sign="dead", part="h.1.mlp.c_fc", words="c_fc of block 1: 61 % of <units>", remedy="do this", first=20, last=40
)


def area(page: str, title: str) -> dict[float, float]:
    """Of one map: the area of the cells, by the opacity of their colour."""
    [svg] = re.findall(rf'<svg[^>]*aria-label="{title}".*?</svg>', page)
    found: dict[float, float] = {}
    for opacity, path in re.findall(r'<path fill="[^"]+" fill-opacity="([\d.]+)" d="([^"]+)"', svg):
        cells = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)", path)
        found[float(opacity)] = sum((float(c) - float(a)) * (float(d) - float(b)) for a, b, c, d in cells)
    return found


def test_every_look_of_every_block_is_a_cell() -> None:
    page = health_section([look(10 * i, dead=float(i >= 3)) for i in range(1, 5)], [])
    cells = area(page, "Dead units")
    assert min(cells.values()) == pytest.approx(max(cells.values()), rel=0.01)  # two looks of four, full and empty
    assert (min(cells), max(cells)) == (0.05, 0.95)
    assert sum(cells.values()) == pytest.approx(356 * 2 * 16, rel=0.01)
    unknown = area(page, "Update over weight")  # a row of what is no number stays blank
    assert sum(unknown.values()) == pytest.approx(356 * 2 * 16, rel=0.01)
    assert "step 10" in page
    assert ">40<" in page


def test_what_is_wrong_is_said_with_its_steps() -> None:
    page = health_section([look(20), look(40)], [FINDING])
    assert "<b>From step 20 on</b>c_fc of block 1: 61 % of &lt;units&gt;; do this" in page
    past = health_section([look(20), look(60)], [replace(FINDING, last=40)])
    assert "Steps 20 to 40" in past
    assert "Nothing out of the ordinary in 2 looks" in health_section([look(20), look(40)], [])


def test_a_run_that_nobody_looked_at_has_no_section() -> None:
    assert health_section([], []) == ""


def test_long_runs_and_deep_models_stay_small() -> None:
    draws = np.random.default_rng(0)
    looks = [look(i, dead=float(draws.random()), layers=48) for i in range(1, 1000)]
    page = health_section(looks, [])
    assert len(page) < 400_000
    assert ">999<" in page  # the last look is always there


def test_quantities_that_a_model_lacks_are_not_drawn() -> None:
    page = health_section([look(10), look(20)], [])
    assert "Drift of the factors" not in page
    factored = [
        replace(h, balance={"h.0.mlp.c_fc": 0.1}, energy={"h.0.mlp.c_fc": [0.5, 0.5]}) for h in (look(1), look(2))
    ]
    assert "Drift of the factors" in health_section(factored, [])
    assert max(area(health_section(factored, []), "Terms in use")) == 0.95
