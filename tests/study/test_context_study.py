"""The study of the context: what each way of reading sees, what is compared with what, and what is said of it."""

from __future__ import annotations

import csv
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.config import KeyValueMemory
from bonsaigpt.engines import load_engine
from bonsaigpt.measure.kv import cut
from bonsaigpt.study.context import ContextPoint, Reach, Way, edges, ways
from bonsaigpt.study.context_page import ContextRun, ContextStudy, context_table, write_context
from bonsaigpt.torch_engine.model import weights
from bonsaigpt.watch.studies import read_study
from tests.torch_engine.decoders import logits_of, model_of
from tests.torch_engine.variants import VARIANTS, variant

ENGINE = load_engine("torch", device="cpu", precision="fp32", threads=1)
STREAMS = cut(np.random.default_rng(0).integers(0, 17, 400), 3, 64)
LENGTHS = [4, 8, 16, 32, 64]


def reach_of(name: str) -> Reach:
    model = model_of(name, block_size=8)
    return Reach(ENGINE, model.config, weights(model), STREAMS, LENGTHS)


def exact(name: str, tokens: np.ndarray, targets: np.ndarray, block: int) -> np.ndarray:
    """Losses of one text that a model of this variant sees whole, by its float64 self at a longer block."""
    model = model_of(name, block_size=block)
    logits = logits_of(model, tokens)
    return (
        np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
        + logits.max(-1)
        - logits[range(len(tokens)), targets]
    )


@pytest.fixture(scope="module")
def turned() -> Reach:
    return reach_of("rope")


def test_every_length_scores_the_same_targets_in_their_order(turned: Reach) -> None:
    for length in (4, 8, 32):  # past the block of 8 positions run on
        found = turned.read(turned.plain, length)
        assert found.shape == (3, 64)
        at = slice(length, 2 * length)
        one = exact("rope", STREAMS[1, :-1][at], STREAMS[1, 1:][at], 32)
        np.testing.assert_allclose(found[1, at], one, atol=2e-5)
        assert np.abs(found[1, :length] - one).max() > 0.1  # another window is another text


def test_a_memory_of_all_that_was_read_is_reading_at_once(turned: Reach) -> None:
    whole = turned.read(turned.plain, 32)
    np.testing.assert_allclose(turned.read(Way(name="", memory=KeyValueMemory(length=24)), 32), whole, atol=2e-5)
    less = turned.read(Way(name="", memory=KeyValueMemory(length=8)), 32)
    np.testing.assert_allclose(less[:, :16], whole[:, :16], atol=2e-5)  # as yet nothing was forgotten
    assert np.abs(less - whole)[:, 16:32].max() > 1e-3


def test_a_window_sees_the_block_and_the_raw_text_ends_with_it(turned: Reach) -> None:
    turned.read_all([turned.plain], advance=lambda *_: None)
    raw = turned.raw_point(advance=lambda *_: None)
    losses = [
        exact("rope", STREAMS[r, t - 7 : t + 1], STREAMS[r, t - 6 : t + 2], 8)[-1]
        for r in range(3)
        for t in range(8, 64)
    ]
    inside = turned.read(turned.plain, 8)[:, :8]
    assert raw.loss == pytest.approx((sum(losses) + inside.sum()) / 192, abs=1e-5)
    [window] = [way for way in ways(turned.config) if way.name == "window(8)"]
    found = turned.read(window, 64)
    np.testing.assert_allclose(found[:, :8], inside, atol=2e-5)
    assert np.abs(found[:, 8:] - turned.read(turned.plain, 64)[:, 8:]).max() > 1e-3


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_can_be_read_in_its_ways(name: str) -> None:
    config = variant(name, block_size=8)
    found = ways(config)
    names = [way.name for way in found]
    assert len(set(names)) == len(names)
    own = config.position.scaling.kind if config.position.kind == "rope" else ""
    scalings = {"linear", "ntk", "yarn"} - {own} if own else set()
    assert {way.name for way in found[1:] if way.is_whole} == scalings
    if config.position.kind == "learned":
        assert names == ["interpolated"]
    else:
        assert ("memory of 8" in names) == (config.attention.kind != "linear")
    reach = reach_of(name)
    for way in found if name in ("sinks in windows", "linear, rope", "no bias", "latent") else []:
        assert np.isfinite(reach.read(way, 32)).all()


def test_differences_are_to_windows_of_the_block_and_to_the_goal(turned: Reach) -> None:
    turned.read_all(ways(turned.config), advance=lambda *_: None)
    points = {(p.way, p.length): p for p in turned.points()}
    home = points["as it is", 8]
    assert (home.added, home.low, home.high) == (0, 0, 0)
    assert {n for way, n in points if way == "linear"} == {16, 32, 64}  # up to the block all ways are one
    far = points["as it is", 64]
    assert far.added == pytest.approx(far.loss - home.loss)
    assert far.low <= far.added <= far.high
    assert len(far.by_position) == len(edges(64, 8)) - 1
    assert far.behind is None
    turned.hold_against(64, turned.plainly(64) - 0.25)
    points = {(p.way, p.length): p for p in turned.points()}
    assert points["as it is", 64].behind == pytest.approx((0.25, 0.25, 0.25))
    assert points["as it is", 32].behind is None


def test_places_on_the_curve_cover_every_position_once() -> None:
    assert edges(32, 8) == [0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32]
    assert edges(4, 8) == [0, 1, 2, 4]
    for length, block in ((48, 24), (7, 8), (8, 8), (3, 1)):
        found = edges(length, block)
        assert (found[0], found[-1]) == (0, length)
        assert found == sorted(set(found))


def point(way: str, length: int, loss: float, *, steps: int = 0, behind: float | None = None) -> ContextPoint:
    added = loss - 2.0
    return ContextPoint(way=way, length=length, steps=steps, loss=loss, added=added, low=added - 0.01,
                        high=added + 0.01, by_position=[loss] * (len(edges(length, 8)) - 1),
                        behind=None if behind is None else (behind, behind, behind))  # fmt: skip


@pytest.fixture
def study() -> ContextStudy:
    points = [
        *(point("as it is", n, loss) for n, loss in ((4, 2.1), (8, 2.0), (16, 2.005), (32, 2.3))),
        *(point("ntk", n, loss) for n, loss in ((16, 1.99), (32, 1.95))),
        *(point("as it is", 16, 1.9, steps=n, behind=b) for n, b in ((10, 0.02), (30, 0.005))),
        *(point("ntk", 16, 1.95, steps=n, behind=0.03) for n in (10, 30)),
    ]
    run = ContextRun(label="runs/it's@9", block=8, home=8, points=points, raw=point("raw", 32, 1.9), goal="runs/long")
    return ContextStudy(runs=[run], lengths=[4, 8, 16, 32], tokens=192, options=["--rows", "3"])


def test_the_verdict_says_how_far_what_helps_and_how_many_steps(study: ContextStudy) -> None:
    said = study.verdict
    assert "As it is it reaches 16 tokens: at 32 it is +0.3000" in said
    assert "at 32 tokens, 'ntk' helps: -0.0500" in said
    assert "Stretched to 16, within 0.01 nats of runs/long: 'as it is' after 30 steps, 'ntk' not in 30 steps" in said
    [run] = study.runs
    flat = replace(study, runs=[replace(run, goal=None, points=[p for p in run.points if p.length < 32])])
    assert "it loses nothing up to 32 tokens" in flat.verdict
    assert "Stretched to 16, 'as it is' is best after 30 steps: -0.1000" in flat.verdict


def test_the_page_the_tables_and_their_commands(study: ContextStudy, tmp_path: Path) -> None:
    page, image, figures, positions = write_context(study, tmp_path)
    assert image.read_bytes().startswith(b"\x89PNG")
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html
    assert "<script" not in html
    [run] = study.runs
    rows = list(csv.DictReader(figures.read_text(encoding="utf-8").splitlines()))
    for row, p in zip(rows, [*run.points, run.raw], strict=True):
        assert p is not None
        assert (row["way"], int(row["length"]), int(row["steps"])) == (p.way, p.length, p.steps)
        assert float(row["loss"]) == pytest.approx(p.loss, rel=1e-5)
        assert row["behind"] == ("" if p.behind is None else f"{p.behind[0]:.6g}")
    trained = next(row for row in rows if row["steps"] == "30" and row["way"] == "ntk")
    stretch, _, score = trained["command"].partition(" && ")
    words = ["bonsai", "stretch", "runs/it's@9", "--block-size", "16", "--rope", "ntk", "--steps", "30"]
    assert shlex.split(stretch) == [*words, "--name", "it's-16-30-ntk"]
    assert shlex.split(score) == ["bonsai", "eval", "it's-16-30-ntk"]
    curve = [
        row
        for row in csv.DictReader(positions.read_text().splitlines())
        if (row["way"], row["length"]) == ("ntk", "32")
    ]
    assert [int(row["from"]) for row in curve] == edges(32, 8)[:-1]
    best = {(row["length"], row["way"], row["steps"]) for row in rows if row["frontier"] == "1"}
    assert len(best) == len({length for length, _, _ in best}) == len(study.lengths)
    (tmp_path / "studies").mkdir()
    figures.rename(tmp_path / "studies" / "context.csv")
    drawn = read_study(tmp_path, "context")  # by `bonsai watch`
    assert drawn is not None
    found = {(p["name"], p["x"]): p for p in drawn["points"]}
    assert found["ntk, after 30 steps", 16.0]["command"] == trained["command"]
    assert found["raw", 32.0]["command"] == ""
    assert found["ntk", 32.0]["front"]
    header, table = context_table(study)
    assert header[2:6] == ["4", "8", "16", "32"]
    assert table[0][:6] == ["as it is", "0", "2.1000", "2.0000", "2.0050", "2.3000"]
    several = replace(study, runs=[run, replace(run, label="other@1")])
    assert context_table(several)[0][0] == "run"
    assert write_context(several, tmp_path)
