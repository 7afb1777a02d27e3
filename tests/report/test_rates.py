"""Loss against learning rate: the valley fills the picture, names do not touch, and equal figures give equal bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bonsaigpt.report.rates import RatePlot, Tried, _limits, _parabola, rate_png, rate_svg


def tried(multiple: float, *losses: float, failed: bool = False) -> Tried:
    mean = sum(losses) / len(losses) if losses else None
    return Tried(
        rate=multiple / 1000,
        name=f"x{multiple:g}",
        losses=losses,
        mean=mean,
        margin=0.01 if losses else None,
        failed=failed,
    )


PLOT = RatePlot(
    tried=[tried(1, 2.2, 2.3), tried(2, 2.0, 2.1), tried(2.8, 2.05, 2.1), tried(4, 2.3, 2.4), tried(32, failed=True)],
    suggested=0.0021,
    through=(0.001, 0.002, 0.0028),
    x_label="optim.lr",
    label="loss & rate",
)


def test_every_rate_is_drawn_and_named_where_there_is_room() -> None:
    wide, narrow = (rate_svg(PLOT, size=(width, 300)) for width in (900, 300))
    for name in ("x1", "x2", "x2.8", "x4", "x32", "failed", "optim.lr", "0.0021", "0.0028"):
        assert f">{name}<" in wide, name
    assert 'aria-label="loss &amp; rate"' in wide
    assert ">x2<" not in narrow, "it would touch x1"
    assert ">x2.8<" in narrow
    assert ">x32<" in narrow
    assert ">failed<" in narrow
    assert "#" not in wide.replace('href="#', "").replace("url(#", ""), "colours are the page's"


def test_the_parabola_goes_through_its_three_means() -> None:
    rates, losses = _parabola(PLOT)
    assert abs(rates[0] - 0.001) < 1e-12
    assert abs(losses[0] - 2.25) < 1e-9
    assert abs(losses[-1] - 2.075) < 1e-9
    assert losses.min() < 2.05


def test_a_rate_that_is_far_worse_does_not_flatten_the_valley() -> None:
    calm = _limits(PLOT)
    wild = replace(PLOT, tried=[*PLOT.tried[:-1], tried(32, 90.0, 99.0)])
    assert _limits(wild)[1] < 6
    assert _limits(wild)[1] > calm[1]
    diverged = replace(PLOT, tried=[*PLOT.tried[:-1], tried(32, 90.0, failed=True)])
    assert _limits(diverged) == calm
    assert _limits(replace(PLOT, tried=[tried(1), tried(2)], through=())) == (0.0, 1.0)


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    one, two = (rate_png(PLOT, tmp_path / n, title="t", note="n").read_bytes() for n in ("a.png", "b.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")
    assert rate_svg(PLOT, size=(900, 300)) == rate_svg(PLOT, size=(900, 300))
    assert rate_svg(PLOT, size=(900, 300)) != rate_svg(replace(PLOT, suggested=0.003), size=(900, 300))
