"""What a sweep says: means over seeds, differences paired by seed, failures left out and named, pages that are true."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_runs import finish, made_sweep

from bonsaigpt.errors import OutputError
from bonsaigpt.report.intervals import Interval, interval_chart
from bonsaigpt.study.page import write_sweep
from bonsaigpt.study.plan import Point
from bonsaigpt.study.progress import Follower
from bonsaigpt.study.results import results, summarise, table, verdict, write_csv
from bonsaigpt.study.sweep import Status, Sweep, is_finished

LOW, HIGH = Point("lr=1e-3", {"optim.lr": "1e-3"}), Point("lr=1", {"optim.lr": "1.0"})
# The seeds differ by far more than the points do, so only pairs can show the difference.
BASE = {1: 2.0, 2: 2.5, 3: 3.1}
OTHER = {1: 1.92, 2: 2.41, 3: 3.03}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two points with three seeds each, all done."""
    made = made_sweep(tmp_path / "grove", [LOW, HIGH], seeds=3)
    for point, losses in ((LOW, BASE), (HIGH, OTHER)):
        for seed, loss in losses.items():
            finish(made, f"{point.name},seed={seed}", [4.0, loss - 0.1, loss + 1e-9], seconds=seed)
    return made


def test_means_and_paired_differences(sweep: Sweep) -> None:
    first, second = summarise(sweep, results(sweep))
    assert first.final is not None
    assert first.final.mean == pytest.approx(np.mean(list(BASE.values())))
    assert first.best is not None
    assert first.best.mean == pytest.approx(first.final.mean - 0.1)
    assert first.seconds is not None
    assert first.seconds.mean == 2.0
    assert first.tokens is not None
    assert first.tokens.mean == 4800
    assert first.difference is None
    found = second.difference
    assert found is not None
    assert found.mean == pytest.approx(-0.08)
    assert found.margin == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-5)
    assert found.is_significant
    assert first.final.margin is not None
    assert first.final.margin > 1, "the control: without pairs the spread of the seeds hides it"


def test_a_difference_is_over_the_seeds_that_both_have(sweep: Sweep) -> None:
    sweep.status["lr=1,seed=1"] = Status("failed", "training diverged")
    sweep.status["lr=1e-3,seed=2"] = Status()
    first, second = summarise(sweep, results(sweep))
    assert set(first.results) == {1, 3}
    assert second.failures == {1: "training diverged"}
    assert second.difference is not None
    assert second.difference.n == 1
    assert second.difference.mean == pytest.approx(OTHER[3] - BASE[3])
    header, rows = table(sweep, [first, second])
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [c["seeds"] for c in cells] == ["2 of 3", "2 of 3"]
    assert [c["failed"] for c in cells] == ["–", "1"]
    assert "p" not in header  # one pair has none
    assert "(1 more failed)" in verdict([second])


def test_the_verdict_claims_no_more_than_the_seeds_show(sweep: Sweep) -> None:
    summaries = summarise(sweep, results(sweep))
    assert verdict(summaries).startswith("Lowest final validation loss: lr=1, 2.4533 ± ")
    assert "Against the next, lr=1e-3: -0.0800 ± 0.0248 nats (paired by seed, p = 0.0052)." in verdict(summaries)
    for seed, loss in ((1, 2.0), (2, 2.41), (3, 3.2)):
        folder = sweep.folder / f"lr=1,seed={seed}" / "checkpoints" / "step-000100"
        state = json.loads((folder / "state.json").read_text())
        change(folder, state | {"evaluation": {"loss": loss}})
    assert "which may be chance" in verdict(summarise(sweep, results(sweep)))
    for seed in (2, 3):
        sweep.status[f"lr=1,seed={seed}"] = Status()
    assert "single seed cannot tell" in verdict(summarise(sweep, results(sweep)))
    for name in sweep.status:
        sweep.status[name] = Status()
    assert verdict(summarise(sweep, results(sweep))) == "No run has finished yet."


def change(folder: Path, state: dict[str, object]) -> None:
    """Another state.json, with its hash."""
    import hashlib

    text = json.dumps(state)
    (folder / "state.json").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_csv_holds_the_same_figures(sweep: Sweep) -> None:
    summaries = summarise(sweep, results(sweep))
    path = write_csv(sweep, summaries, sweep.folder / "sweep.csv")
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (second["point"], second["optim.lr"], second["finished"], second["failed"]) == ("lr=1", "1.0", "3", "0")
    assert float(second["final_loss"]) == pytest.approx(np.mean(list(OTHER.values())))
    assert float(second["difference"]) == pytest.approx(-0.08)
    assert float(second["difference_p"]) == pytest.approx(0.0052, abs=5e-5)
    assert first["difference"] == first["difference_p"] == ""


def test_the_page(sweep: Sweep) -> None:
    sweep.status["lr=1,seed=2"] = Status("failed", "<b>diverged</b>")
    (sweep.folder / "lr=1,seed=1" / "report.html").write_text("")
    path = write_sweep(sweep, summarise(sweep, results(sweep)))
    page = path.read_text(encoding="utf-8")
    assert "5 of 6 runs done, 1 failed" in page
    assert "failed: &lt;b&gt;diverged" in page
    assert "<b>" not in page
    assert re.findall(r'href="([^#"]+)"', page) == ["./lr%3D1%2Cseed%3D1/report.html"]
    assert "Bands: from the lowest to the highest" in page
    assert page.count('<svg class="chart"') == 2
    assert page.count('role="img"') == 4  # and an interval for each point
    assert write_sweep(sweep, summarise(sweep, results(sweep))).read_text(encoding="utf-8") == page


def test_intervals_lie_where_their_values_are() -> None:
    rows = [
        Interval(name="a", values=[1.0, 3.0], mean=2.0, margin=None, words="2"),
        Interval(name="b", values=[2.0], mean=2.0, margin=0.5, words="2 ± 0.5"),
    ]
    page = interval_chart(rows)
    middles = re.findall(r'cx="([\d.]+)"', page)
    assert middles == ["300.0", "300.0"]
    low, high, alone = re.findall(r'<line x1="([\d.]+)" x2="\1"', page)
    assert float(low) < 300 < float(high)
    assert float(low) + float(high) == pytest.approx(600)
    assert alone == "300.0"
    assert page.count('stroke-width="2"') == 1


# ------------------------------------------------------------------ the folder


def test_a_sweep_goes_on_with_its_own_plan_alone(sweep: Sweep, tmp_path: Path) -> None:
    more = made_sweep(sweep.folder, [LOW, HIGH, Point("lr=3", {"optim.lr": "3"})], seeds=4)
    assert len(more.left()) == 12 - 6
    with pytest.raises(OutputError, match="which this command leaves out"):
        made_sweep(sweep.folder, [LOW, HIGH], seeds=2)
    other = Point("lr=1", {"optim.lr": "1.0", "train.steps": "99"})
    with pytest.raises(OutputError, match=r"lr=1,seed=1 has train.steps = 100, not 99"):
        made_sweep(sweep.folder, [LOW, other, Point("lr=3", {"optim.lr": "3"})], seeds=4)
    (tmp_path / "no-sweep").mkdir()
    with pytest.raises(OutputError, match="is no sweep"):
        made_sweep(tmp_path / "no-sweep", [LOW], seeds=2)
    assert list((tmp_path / "no-sweep").iterdir()) == []


def test_the_folders_are_the_truth(sweep: Sweep) -> None:
    assert sweep.left() == []
    done = "lr=1,seed=1"
    sweep.status[done] = Status()  # a kill came before the note
    assert sweep.left() == []
    assert sweep.status[done].word == "done"
    (sweep.folder / done).rename(sweep.folder / "elsewhere")
    assert [run.name for run in sweep.left()] == [done]
    assert is_finished(sweep.folder / "elsewhere")
    assert not is_finished(sweep.folder / done)


def test_failures_are_kept_and_tried_again_only_when_asked(sweep: Sweep, tmp_path: Path) -> None:
    fresh = made_sweep(tmp_path / "fresh", [LOW, HIGH], seeds=1)
    fresh.status["lr=1,seed=1"] = Status("failed", "why")
    assert [run.name for run in fresh.left()] == ["lr=1e-3,seed=1"]
    assert [run.name for run in fresh.left(retry=True)] == ["lr=1e-3,seed=1", "lr=1,seed=1"]


# ------------------------------------------------------------------ progress


def test_progress_counts_steps_and_reads_only_what_is_new(tmp_path: Path) -> None:
    sweep = made_sweep(tmp_path / "grove", [LOW, HIGH], seeds=1)
    finish(sweep, "lr=1e-3,seed=1", [4.0, 2.5])
    follower = Follower(sweep)
    now = follower.look(["lr=1,seed=1"])
    assert (now.ended, now.steps, now.total, now.best) == (1, 100, 200, (2.5, "lr=1e-3,seed=1"))
    metrics = sweep.folder / "lr=1,seed=1" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text('{"step": 10, "loss": 3.0}\n{"step": 20, "val_lo')
    assert follower.look(["lr=1,seed=1"]).steps == 110
    with metrics.open("a") as file:
        file.write('ss": 2.25}\n')
    now = follower.look(["lr=1,seed=1"])
    assert (now.steps, now.best) == (120, (2.25, "lr=1,seed=1"))
    metrics.write_text('{"step": 15, "loss": 3.0}\n')  # gone on from an earlier checkpoint
    assert follower.look(["lr=1,seed=1"]).steps == 115
