"""Batch against block: equal tokens, the same evaluation for all, and crossings that are where they should be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_runs import configure, finish, made_sweep

from bonsaigpt.config import validate
from bonsaigpt.errors import ConfigError
from bonsaigpt.report.heatmap import HeatMap, heat_png, heat_svg
from bonsaigpt.study.batch import analyse, batch_points, own_losses, pairs, write_json
from bonsaigpt.study.batch_page import batch_table, write_batch
from bonsaigpt.study.results import results, summarise
from bonsaigpt.study.sweep import Sweep


def test_the_pairs_of_one_step() -> None:
    found = pairs([768], [128, 8, 16, 32, 64])
    assert [p.name for p in found] == ["96x8", "48x16", "24x32", "12x64", "6x128"]
    assert {p.tokens for p in found} == {768}
    assert [p.name for p in pairs([12, 24], [8, 4, 5])] == ["3x4", "6x4", "3x8"]  # 12 has no blocks of 8
    with pytest.raises(ConfigError, match="give 1 way to make a step of 10"):
        pairs([10], [5, 4])


def test_all_points_have_equal_tokens_and_the_same_evaluation() -> None:
    base = configure(
        {"optim.schedule.kind": "cosine", "optim.schedule.warmup": "20"}
    )  # 100 steps of 6 x 8 tokens, evaluated every 50
    found = pairs([24, 48, 96], [4, 8, 16])
    points = batch_points(base, found, budget=None, context=None)
    configs = [configure({**p.settings}) for p in points]
    for pair, config in zip(found, configs, strict=True):
        per_step = config.train.batch_size * config.model.block_size
        assert per_step == pair.tokens
        assert config.train.steps * per_step == 4800
        assert config.train.eval_interval * per_step == 50 * 48
        assert config.optim.schedule.warmup * per_step == 20 * 48
        assert config.train.eval_block_size == 4
    assert len({p.name for p in points}) == len(points) == 8
    [longer, *_] = batch_points(base, found, budget=48_000, context=2)
    assert longer.settings["train.steps"] == "2000"
    assert longer.settings["train.eval_block_size"] == "2"


def test_what_cannot_be_compared() -> None:
    found = pairs([48], [8, 16])
    with pytest.raises(ConfigError, match="longer than the shortest block, 8"):
        batch_points(configure({}), found, budget=None, context=9)
    with pytest.raises(ConfigError, match="not even one step"):
        batch_points(configure({}), found, budget=47, context=None)
    sort = validate({"data": {"kind": "sort"}}, origin="the test")
    with pytest.raises(ConfigError, match="nothing can be cut"):
        batch_points(sort, found, budget=None, context=None)
    ramp = configure({"train.batch_ramp.kind": "linear"})
    with pytest.raises(ConfigError, match="a ramp changes batch or block"):
        batch_points(ramp, found, budget=None, context=None)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Three pairs of 48 tokens; the short ones learn better a token and slower a second."""
    points = batch_points(configure({}), pairs([48], [4, 8, 16]), budget=None, context=None)
    made = made_sweep(tmp_path / "grove", points, seeds=2)
    for seed, shift in ((1, 0.0), (2, 0.02)):
        finish(made, f"12x4,seed={seed}", [4.0, 2.0 + shift, 1.8 + shift], seconds=40)
        finish(made, f"6x8,seed={seed}", [4.0, 2.2 + shift, 1.9 + shift + 1e-9], seconds=20)
        finish(made, f"3x16,seed={seed}", [4.0, 2.4 + shift, 2.1 + shift], seconds=10, memory=500.0)
    return made


def own(sweep: Sweep) -> dict[str, float]:
    return {run.name: 2.0 - int(run.name.split("x")[1].split(",")[0]) / 100 for run in sweep.plan.runs}


def test_the_target_is_what_every_seed_of_the_median_pair_reaches(sweep: Sweep) -> None:
    study = analyse(summarise(sweep, results(sweep)), own(sweep), sweep, target=None)
    assert study.target == 1.92 + 1e-9
    short, middle, long = study.outcomes
    assert (short.reached, middle.reached, long.reached) == (2, 2, 0)
    assert short.steps_to_target is not None
    # from 2.0 at step 50 to 1.8 at step 100, and from 2.02 to 1.82: at 1.92 after 70 and 75
    assert short.steps_to_target.mean == pytest.approx(72.5)
    assert short.seconds_to_target is not None
    assert short.seconds_to_target.mean == pytest.approx(72.5 * 40 / 100)
    assert middle.seconds_to_target is not None
    assert middle.seconds_to_target.mean == pytest.approx((90 + 1 / 0.3 + 100) / 2 * 0.2, abs=0.4)
    assert long.steps_to_target is None
    assert long.memory_mb is not None
    assert long.memory_mb.mean == 500
    header, rows = batch_table(study)
    assert header[0] == "batch x block"
    assert dict(zip(header, rows[2], strict=True))["steps to target"] == "–"


def test_a_target_of_ones_own(sweep: Sweep) -> None:
    summaries = summarise(sweep, results(sweep))
    study = analyse(summaries, own(sweep), sweep, target=1.81)
    assert study.outcomes[0].reached == 1
    assert study.outcomes[0].steps_to_target is None
    header, rows = batch_table(study)
    assert dict(zip(header, rows[0], strict=True))["steps to target"] == "1 of 2 seeds"
    at_once = analyse(summaries, own(sweep), sweep, target=5.0)
    assert at_once.outcomes[0].steps_to_target is not None
    assert at_once.outcomes[0].steps_to_target.mean == 0


def test_the_verdict_tells_both_evaluations_apart(sweep: Sweep) -> None:
    said = analyse(summarise(sweep, results(sweep)), own(sweep), sweep, target=None).verdict
    assert said.startswith("All scored at 4 tokens of context. Lowest final validation loss: 12x4, 1.8100 ± ")
    assert "With the context each was trained on, 3x16 is lowest" in said
    assert "6x8 is the first at 1.9200" in said


def test_own_losses_are_measured_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []

    def score(run: object, *_: object) -> float:
        scored.append(run.path.name)  # type: ignore[attr-defined]
        return 1.5

    monkeypatch.setattr("bonsaigpt.study.batch._own_loss", score)
    found = results(sweep)
    first = own_losses(sweep, found, Path("corpora"), advance=lambda *_: None)
    assert first["12x4,seed=1"] == 1.8, "its block is the common context: nothing to measure"
    assert sorted(scored) == ["3x16,seed=1", "3x16,seed=2", "6x8,seed=1", "6x8,seed=2"]
    write_json(analyse(summarise(sweep, found), first, sweep, target=None), first, sweep)
    assert own_losses(sweep, found, Path("corpora"), advance=lambda *_: None) == first
    assert len(scored) == 4


def test_page_picture_and_json(sweep: Sweep) -> None:
    study = analyse(summarise(sweep, results(sweep)), own(sweep), sweep, target=None)
    record = json.loads(write_json(study, own(sweep), sweep).read_text())
    assert record["target_loss"] == study.target
    assert [p["block_size"] for p in record["pairs"]] == [4, 8, 16]
    assert record["pairs"][2]["seconds_to_target"] is None
    assert record["pairs"][0]["final_loss"]["n"] == 2
    page_path, image = write_batch(study, sweep)
    page = page_path.read_text(encoding="utf-8")
    assert image.read_bytes().startswith(b"\x89PNG")
    assert page.count('class="chart heat"') == 6
    assert "in windows of 4 tokens, whatever its own block size" in page
    assert "4,800 training tokens" in page


def test_nothing_finished_is_still_a_page(tmp_path: Path) -> None:
    points = batch_points(configure({}), pairs([48], [4, 8]), budget=None, context=None)
    empty = made_sweep(tmp_path / "grove", points, seeds=1)
    study = analyse(summarise(empty, results(empty)), {}, empty, target=None)
    assert "No run has finished yet." in study.verdict
    for path in write_batch(study, empty):
        assert path.is_file()


def test_the_fuller_the_colour_the_lower(tmp_path: Path) -> None:
    values = {(6, 8): 2.0, (3, 16): 3.0, (1, 48): None}
    labels = {(6, 8): "two", (3, 16): "three", (1, 48): "none"}
    map_ = HeatMap(title="t", values=values, labels=labels, x_label="x", y_label="y")
    svg = heat_svg(map_, name="m", size=(300, 200))
    opacities = [float(o) for o in re.findall(r"fill: var\(--c0\); opacity: ([\d.]+)", svg)]
    assert len(opacities) == 3
    assert opacities[0] > 5 * opacities[1]
    assert opacities[1] == opacities[2]
    assert all(word in svg for word in labels.values())
    calm = heat_svg(HeatMap(**{**vars(map_), "least_range": 10.0}), name="m", size=(300, 200))
    close = [float(o) for o in re.findall(r"fill: var\(--c0\); opacity: ([\d.]+)", calm)]
    assert close[1] > 0.9 * close[0], "a difference that is small for this figure looks small"
    assert heat_svg(map_, name="m", size=(300, 200)) == svg
    one, two = (heat_png([map_], tmp_path / n, title="t", note="n").read_bytes() for n in ("a.png", "b.png"))
    assert one == two
