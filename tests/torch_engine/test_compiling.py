"""The decision to compile: its arithmetic, its reasons, and that a missing compiler is no failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bonsaigpt.config import RunConfig, derive, validate
from bonsaigpt.torch_engine import compiling
from bonsaigpt.torch_engine.compiling import decide_compiling
from bonsaigpt.torch_engine.engine import TorchEngine
from tests.torch_engine.test_step import batch

CPU = torch.device("cpu")
ENGINE = TorchEngine(device="cpu", workers=2)


@pytest.fixture(autouse=True)
def a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that can compile, with an empty cache."""
    monkeypatch.setattr(compiling, "what_is_missing", lambda device: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def config(steps: int = 10_000, **train: object) -> RunConfig:
    """A run of so many steps."""
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11}
    return validate({"model": model, "train": {"steps": steps, "batch_size": 8} | train}, origin="t")


def step(eager: float, compiled: float) -> Callable[[RunConfig], float]:
    """Seconds a step takes, eager and compiled."""
    return lambda tried: compiled if tried.train.compile == "on" else eager


def test_a_short_run_is_not_compiled_and_nothing_is_tried() -> None:
    def measure(tried: RunConfig) -> float:
        assert tried.train.compile == "off"
        return 0.04

    decision = decide_compiling(config(steps=2000), CPU, measure)
    assert not decision.compile
    assert "2,000 steps of 40 ms could save 16 s, compiling costs about 30 s" in decision.why


def test_a_long_run_is_compiled_if_that_measures_faster() -> None:
    faster = decide_compiling(config(steps=100_000), CPU, step(0.04, 0.03))
    assert (faster.compile, faster.attention_kernel) == (True, "sdpa")
    assert "1.33x" in faster.why
    slower = decide_compiling(config(steps=100_000, batch_size=4), CPU, step(0.04, 0.04))
    assert (slower.compile, slower.attention_kernel) == (False, "sdpa")
    assert "not worth it" in slower.why


def test_a_long_run_takes_the_attention_kernel_that_measures_faster() -> None:
    tried = []

    def measure(run: RunConfig) -> float:
        tried.append((run.train.compile, run.train.attention_kernel))
        return 0.02 if run.train.attention_kernel == "plain" else 0.03

    assert decide_compiling(config(steps=100_000), CPU, measure).attention_kernel == "plain"
    assert tried == [("off", "sdpa"), ("off", "plain"), ("on", "plain")]
    tried.clear()
    asked = config(steps=100_000, batch_size=4, attention_kernel="sdpa")
    assert decide_compiling(asked, CPU, measure).attention_kernel == "sdpa"
    assert tried == [("off", "sdpa"), ("on", "sdpa")]


def test_what_was_measured_here_before_is_remembered() -> None:
    run = config(steps=2500)  # could save 20 s by the first guess
    assert not decide_compiling(run, CPU, step(0.04, 0.03)).compile
    decide_compiling(config(steps=100_000), CPU, step(0.04, 0.03))
    assert decide_compiling(run, CPU, step(0.04, 0.03)).compile
    # And that it gained nothing: another run does not try again.
    decide_compiling(config(steps=100_000, batch_size=4), CPU, step(0.04, 0.04))
    again = decide_compiling(config(steps=100_000, batch_size=4), CPU, step(0.04, 0.001))
    assert again.why == "off: when it was tried here, a compiled step was 1.00x as fast"


def test_what_pays_hangs_on_the_steps_to_come() -> None:
    run = config(steps=100_000)
    late = decide_compiling(run, CPU, step(0.04, 0.03), begin=98_000)
    assert "2,000 steps of 40 ms could save 16 s" in late.why
    last = decide_compiling(run, CPU, step(0.0004, 0.0003), begin=99_999)
    assert "1 step of 0.4 ms could save 0.08 ms" in last.why
    assert decide_compiling(run, CPU, step(0.04, 0.03), begin=50_000).compile


def test_a_damaged_note_is_a_missing_note() -> None:
    run = config(steps=100_000)
    note = compiling._Note(run, CPU)
    note.write(1.5)
    assert compiling._Note(run, CPU).gain == 1.5
    note.path.write_text('{"gain"')
    assert compiling._Note(run, CPU).gain is None


def test_an_order_is_followed_and_a_missing_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decide_compiling(config(steps=1, compile="on"), CPU, step(1, 1)).compile
    assert decide_compiling(config(compile="off"), CPU, step(9, 1)).why == "off, as asked"
    assert (
        decide_compiling(config(compile="off", attention_kernel="plain"), CPU, step(9, 1)).attention_kernel == "plain"
    )
    monkeypatch.setattr(compiling, "what_is_missing", lambda device: "no C++ compiler here")
    assert decide_compiling(config(compile="on"), CPU, step(9, 1)).why == "off: no C++ compiler here"


def test_a_compiler_that_fails_is_no_error() -> None:
    def measure(tried: RunConfig) -> float:
        if tried.train.compile == "on":
            raise RuntimeError("internal compiler error")
        return 1.0

    assert decide_compiling(config(), CPU, measure).why == "off: compiling failed (RuntimeError)"


def test_the_engine_resolves_everything_and_a_resolved_run_stays_as_it_is() -> None:
    resolved, why = ENGINE.resolve(config(steps=3), batch())
    assert resolved.train.workers == 2
    assert resolved.train.micro_batch == 4
    assert resolved.train.compile == "off"
    assert resolved.train.attention_kernel == "sdpa"
    assert json.dumps(why).count(":") >= 3
    assert ENGINE.resolve(resolved, batch())[0] == resolved
    noisy, why = ENGINE.resolve(derive(config(steps=3), model={"dropout": 0.1}), batch())
    assert noisy.train.workers == 1
    assert "dropout" in why["train.workers"]


def test_only_what_takes_time_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(engine: TorchEngine, tried: RunConfig, *_: object) -> list[float]:
        return [9.0, 1.0 if tried.train.compile == "on" else 2.0]

    monkeypatch.setattr(TorchEngine, "time_steps", seconds)
    said: list[str] = []
    resolved, why = ENGINE.resolve(config(), batch(), say=said.append)
    assert resolved.train.compile == "on"
    assert why["train.compile"].startswith("on: 2.00x as fast")
    assert [line.split(",")[0] for line in said] == ["timing a few steps on scratch weights", "compiling a step"]
    assert resolved.left_open == ()
    said.clear()
    assert ENGINE.resolve(resolved, batch(), say=said.append)[0] == resolved
    assert said == []


def test_plain_attention_is_the_fused_one() -> None:
    model = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 8, "vocab_size": 11, "attention": {"n_kv_head": 2}}
    runs = [validate({"model": model, "train": {"attention_kernel": k}}, origin="t") for k in ("sdpa", "plain")]
    states = [ENGINE.init(run) for run in runs]
    tokens = torch.from_numpy(batch().tokens_BT)
    fused, plain = (state.layout.learners[0].model(tokens) for state in states)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fused, plain)  # it is another way to compute
    states[1].layout.learners[0].model.attend_plainly(False)
    assert torch.equal(fused, states[1].layout.learners[0].model(tokens))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # torch's own compiler uses it
def test_a_compiled_step_of_two_workers_takes_the_eager_step() -> None:
    runs = [config(compile=c, attention_kernel=k) for c, k in (("off", "sdpa"), ("on", "sdpa"))]
    states = [ENGINE.init(run) for run in runs]
    for number in range(3):
        losses = [
            ENGINE.step(state, batch(seed=number), config=run, share=1.0, step=number).host()["loss"]
            for state, run in zip(states, runs, strict=True)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
