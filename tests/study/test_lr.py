"""The learning rate by short trainings: equal but for the rate, the bottom of a known valley, edges that are said."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from made_runs import configure, finish, made_sweep

from bonsaigpt.config import RunConfig
from bonsaigpt.errors import ConfigError
from bonsaigpt.recipes import flatten
from bonsaigpt.study.lr import LrStudy, analyse, bottom, earlier, lr_points, rates, write_json
from bonsaigpt.study.lr_page import lr_table, write_lr
from bonsaigpt.study.results import results, summarise
from bonsaigpt.study.sweep import Status, Sweep

MUON = {"optim.matrices.kind": "muon", "optim.matrices.lr": "0.02"}
GIVEN = (0.5, 1.0, 2.0)


def changed(base: RunConfig, config: RunConfig) -> set[str]:
    before, after = (flatten(c.model_dump(mode="json")) for c in (base, config))
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_all_rates_move_together_and_nothing_else_differs() -> None:
    base = configure({**MUON, "optim.lr": "0.005", "optim.schedule.kind": "cosine", "optim.schedule.warmup": "20"})
    points = lr_points(base, [2.0, 0.5, 1.0], steps=50)
    assert [p.name for p in points] == ["x1", "x0.5", "x2"], "the recipe's own is what the others are held against"
    own, half, double = (configure({**MUON, **p.settings}) for p in points)
    assert changed(own, double) == {"optim.lr", "optim.matrices.lr"}
    assert rates(half, 1.0) == {"optim.lr": 0.0025, "optim.matrices.lr": 0.01}
    assert rates(double, 1.0) == {"optim.lr": 0.01, "optim.matrices.lr": 0.04}
    # 100 steps shrunk to 50, warmup with them
    assert (own.train.steps, own.optim.schedule.warmup) == (50, 10)
    shrunk = {"train.steps", "train.eval_interval", "train.guard.rollbacks", "optim.schedule.warmup"}
    assert changed(base, own) <= shrunk


def test_adamw_alone_has_one_rate() -> None:
    assert rates(configure({}), 3.0) == {"optim.lr": 0.003}


def test_ramps_keep_their_share_of_the_steps() -> None:
    linear = {"train.batch_ramp.kind": "linear", "train.batch_ramp.steps": "40"}
    staged = {"train.context_ramp.kind": "staged", "train.context_ramp.sizes": "[2,4]"}
    data = {**linear, **staged, "train.context_ramp.until": "[1,60]"}
    base = configure({k: json.loads(v) if v[0] == "[" else v for k, v in data.items()})
    [own] = lr_points(base, [1.0], steps=10)
    assert own.settings["train.batch_ramp.steps"] == "4"
    assert own.settings["train.context_ramp.until"] == "[1, 6]"
    [fewest] = lr_points(base, [1.0], steps=1)
    assert fewest.settings["train.context_ramp.until"] == "[1, 2]", "ends must grow"


def test_more_steps_than_the_recipe_shrink_nothing() -> None:
    with pytest.raises(ConfigError, match=r"--steps 101 is more than the recipe's own 100: use fewer, or give --train"):
        lr_points(configure({}), GIVEN, steps=101)


@pytest.mark.parametrize("true", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("grid", [(0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0, 4.0), (0.1, 0.7, 1.0, 5.0)])
def test_the_bottom_of_a_parabola_is_found_exactly(true: float, grid: tuple[float, ...]) -> None:
    found, through = bottom({m: 2.0 + 0.1 * math.log(m / true) ** 2 for m in grid})
    assert found == pytest.approx(true, rel=1e-9)
    assert len(through) == 3
    assert through[0] < found < through[2]


def test_an_edge_is_never_left_by_guessing() -> None:
    assert bottom({1.0: 3.0, 2.0: 2.0, 4.0: 1.9}) == (4.0, (4.0,))
    assert bottom({1.0: 1.0, 2.0: 2.0}) == (1.0, (1.0,))
    assert bottom({0.5: 1.0, 1.0: 1.0, 2.0: 1.0}) == (0.5, (0.5,))
    steep = bottom({1.0: 9.0, 2.0: 1.0, 4.0: 1.0 + 1e-9})[0]
    assert 2.0 <= steep <= math.sqrt(8), "between the neighbours, however lopsided"


def study(
    folder: Path, losses: Mapping[float, list[float | None]], *, base: RunConfig | None = None
) -> tuple[LrStudy, Sweep]:
    """What the study says of these losses by multiple and seed; None diverged."""
    base = base or configure({})
    sweep = made_sweep(
        folder / "grove", lr_points(base, list(losses), steps=50), seeds=len(next(iter(losses.values())))
    )
    for run in sweep.plan.runs:
        loss = losses[float(run.point[1:])][run.seed - 1]
        if loss is None:
            sweep.status[run.name] = Status("failed", "training diverged at step 9")
        else:
            finish(sweep, run.name, [4.0, loss])
    return analyse(summarise(sweep, results(sweep)), base, given=GIVEN, steps=50), sweep


def valley(bottom_at: float, *grid: float, seeds: int = 2) -> dict[float, list[float | None]]:
    return {m: [2.0 + 0.1 * math.log(m / bottom_at) ** 2 + 0.01 * seed for seed in range(seeds)] for m in grid}


def test_inside_it_suggests_the_bottom_and_the_flags(tmp_path: Path) -> None:
    found, _ = study(tmp_path, valley(1.25, *GIVEN, 1.2))
    assert found.more == ()
    assert found.suggestion is not None
    assert found.suggestion.multiple == pytest.approx(1.25)
    assert found.suggestion.by_seed == pytest.approx((1.25, 1.25))
    assert found.suggestion.flags == "--optim.lr 0.0013", "two digits: more are not known"
    assert "Lowest final validation loss: x1.2," in found.verdict
    assert (
        "through x1, x1.2 and x2 is lowest at x1.2 (seed by seed x1.2 to x1.2). This is for 50 steps; the 100"
        in found.verdict
    )
    assert found.verdict.endswith(". Use --optim.lr 0.0013"), "ready to be copied"


def test_it_says_where_the_recipes_own_rate_may_be_as_good(tmp_path: Path) -> None:
    close = {1.0: [2.03, 2.00], 2.0: [2.0, 2.01], 2.8: [2.0, 2.02], 4.0: [2.3, 2.3]}
    found, _ = study(tmp_path / "close", close)
    assert "The recipe's own rate, x1, cannot be told from it (-0.01" in found.verdict
    clear, _ = study(tmp_path / "clear", close | {1.0: [2.2, 2.21]})
    assert "cannot be told" not in clear.verdict
    single, _ = study(tmp_path / "single", {m: losses[:1] for m, losses in close.items()})
    assert "cannot be told" not in single.verdict


@pytest.mark.parametrize(("at", "more"), [(8.0, 4.0), (0.1, 0.25)])
def test_at_an_edge_it_goes_on(at: float, more: float, tmp_path: Path) -> None:
    found, _ = study(tmp_path, valley(at, *GIVEN))
    assert found.more == (more,)
    assert "at the edge" in found.why
    assert "at the edge of what has been tried so far" in found.verdict


def test_between_far_neighbours_it_looks_closer(tmp_path: Path) -> None:
    """In a valley that is steep on one side the parabola of a coarse grid is wrong."""

    def lopsided(m: float) -> list[float | None]:
        return [2.0 + (1.0 if m > 1.5 else 0.1) * math.log(m / 1.5) ** 2]

    coarse, _ = study(tmp_path / "coarse", {m: lopsided(m) for m in GIVEN})
    assert coarse.more == (0.71, 1.4)
    assert coarse.why == "x1 is the best, and its neighbours are far"
    fine, _ = study(tmp_path / "fine", {m: lopsided(m) for m in (*GIVEN, *coarse.more)})
    assert fine.more == (), "it is best at x1.4 with neighbours at x1 and x2"
    assert coarse.suggestion is not None
    assert fine.suggestion is not None
    off = [abs(math.log(s.multiple / 1.5)) for s in (coarse.suggestion, fine.suggestion)]
    assert off[1] < 0.6 * off[0]


def test_of_what_is_not_finished_nothing_is_concluded(tmp_path: Path) -> None:
    base = configure({})
    sweep = made_sweep(tmp_path / "grove", lr_points(base, GIVEN, steps=50), seeds=1)
    for name, loss in (("x1,seed=1", 2.0), ("x0.5,seed=1", 2.1)):
        finish(sweep, name, [4.0, loss])
    found = analyse(summarise(sweep, results(sweep)), base, given=GIVEN, steps=50)
    assert found.more == ()


def test_it_does_not_go_on_for_ever(tmp_path: Path) -> None:
    found, _ = study(tmp_path, valley(1e6, *GIVEN, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0))
    assert found.more == ()
    assert "may lie further: start from this rate anew." in found.verdict
    assert found.verdict.endswith("Use --optim.lr 0.13")


def test_a_rate_at_which_one_seed_diverges_is_no_candidate(tmp_path: Path) -> None:
    losses = valley(8.0, *GIVEN)
    losses[2.0][1] = None
    found, sweep = study(tmp_path, losses)
    assert found.more == ()
    assert found.suggestion is not None
    assert found.suggestion.multiple == 1.0
    assert "Beyond it a training failed" in found.verdict
    header, rows = lr_table(found, configure({}))
    assert dict(zip(header, rows[2], strict=True))["failed"] == "1"
    assert sweep.plan.points[0].name == "x1"


def test_nothing_finished_is_still_a_page(tmp_path: Path) -> None:
    base = configure({})
    sweep = made_sweep(tmp_path / "grove", lr_points(base, GIVEN, steps=50), seeds=1)
    found = analyse(summarise(sweep, {}), base, given=GIVEN, steps=50)
    assert found.suggestion is None
    assert found.verdict == "No run has finished yet."
    assert json.loads(write_json(found, base, sweep).read_text())["suggestion"] is None
    for path in write_lr(found, base, sweep):
        assert path.is_file()


def test_json_page_and_picture(tmp_path: Path) -> None:
    base = configure(MUON)
    losses = valley(1.25, *GIVEN, 4.0)
    losses[4.0] = [None, None]
    found, sweep = study(tmp_path, losses, base=base)
    record = json.loads(write_json(found, base, sweep).read_text())
    assert record["suggestion"]["rates"] == {"optim.lr": 0.0013, "optim.matrices.lr": 0.025}
    assert [m["multiple"] for m in record["multiples"]] == [0.5, 1.0, 2.0, 4.0]
    assert record["multiples"][1]["losses_by_seed"].keys() == {"1", "2"}
    assert record["multiples"][3]["final_loss"] is None
    assert record["multiples"][3]["failures_by_seed"]["1"].startswith("training diverged")
    page, picture = write_lr(found, base, sweep)
    html = page.read_text(encoding="utf-8")
    assert "<dt>--optim.matrices.lr</dt><dd>0.025" in html
    assert html.count('class="chart"') == 2
    assert ">failed<" in html
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_earlier_multiples_are_found_again(tmp_path: Path) -> None:
    _, sweep = study(tmp_path, valley(1.0, *GIVEN, 4.0))
    assert sorted(earlier(sweep.folder)) == [0.5, 1.0, 2.0, 4.0]
    assert earlier(tmp_path / "nothing") == []
    (sweep.folder / "sweep.json").write_text('{"points": [{"name": "lr=1e-3"}]}')
    assert earlier(sweep.folder) == []
