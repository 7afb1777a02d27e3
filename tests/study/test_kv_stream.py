"""Streaming far past the training context: what a window costs does not grow with the position."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.config import derive, validate
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv import contiguous, cut
from bonsaigpt.measure.statistics import slope
from bonsaigpt.study.kv import Bench, Subject
from bonsaigpt.train.schedule import schedule_share

BLOCK = 16


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model of a made-up language, trained in blocks of 16, and text in pieces of 17 blocks."""
    folder = tmp_path_factory.mktemp("stream")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 6))) for _ in range(24)]
    (folder / "text.txt").write_text(" ".join(rng.choice(words, 16000)), encoding="utf-8")
    config = validate(
        {
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": BLOCK, "position": {"kind": "rope"}},
            "data": {"kind": "files", "path": str(folder / "text.txt"), "val_fraction": 0.15},
            "optim": {"lr": 1e-2, "schedule": {"kind": "linear"}},
            "train": {"steps": 200, "batch_size": 24, "threads": 1, "precision": "fp32", "compile": "off"}
            | {"device": "cpu", "workers": 1, "attention_kernel": "sdpa"},
        },
        origin="the test",
    )
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    source = open_source(config, folder / "corpora")
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    state = engine.init(config)
    for step in range(config.train.steps):
        engine.step(state, source.batch_at(step), config=config, share=schedule_share(config, step), step=step)
    streams = cut(contiguous(source), 24, 17 * BLOCK)
    bench = Bench(engine, Subject(label="", model=engine.model_of(state), config=config.model), streams, chunk=1)
    bench.refer(windows=True, advance=lambda *_: None)
    return bench


@pytest.mark.slow
@pytest.mark.parametrize("words", ["window(16), bf16", "sinks(2)+window(14), bf16, positions=slot"])
def test_a_window_is_flat_over_sixteen_times_the_training_context(bench: Bench, words: str) -> None:
    raw = next(r for r in bench.references if "raw text" in r.name)
    assert raw.loss < 1.2  # of ln 9 = 2.2: it has learned something that could be lost
    point = bench.measure(read_policy(words))
    assert abs(point.slope) < 1.5 * (point.slope_margin or 0.0)
    assert abs(point.loss - raw.loss) < 0.01


@pytest.mark.slow
def test_sinks_at_true_positions_stand_where_no_query_has_looked(bench: Bench) -> None:
    """RoPE past the training context: the sinks' distance grows with the text, and costs more than they bring."""
    assert bench.measure(read_policy("sinks(2)+window(14), bf16")).added > 0.1


def test_a_loss_that_rises_is_seen() -> None:
    noise = np.random.default_rng(0).normal(size=(24, 256))
    flat, margin = slope(noise)
    assert margin is not None
    assert abs(flat) < 1.5 * margin
    rising, margin = slope(noise + np.linspace(0, 0.3, 256))
    assert margin is not None
    assert rising == pytest.approx(flat + 0.3)
    assert rising > 1.5 * margin
