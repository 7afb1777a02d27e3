"""The count of a step's memory, held against what real steps hold, as torch's profiler sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.config import PRESETS, RunConfig, derive, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.room import at_most
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.memory import count_step
from bonsaigpt.trace import StepMemory
from tests.torch_engine.variants import VARIANTS

ENGINE = TorchEngine(device="cpu", threads=1, workers=1)
ROWS = 8
GENERATOR = 5056
"""Bytes of the generator's state, which torch.utils.checkpoint keeps for every block."""
INSIDE = 16 * 2**10
"""What kernels may take for themselves here: the largest are index buffers of one number for each of 2,048 targets."""

BIG = {"vocab_size": 5000}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"model": model} for name, model in VARIANTS.items()},
    "two passes": {"train": {"batch_size": 2 * ROWS}},
    "muon": {"optim": {"matrices": {"kind": "muon"}}},
    "the optimizer holds most": {
        "optim": {"matrices": {"kind": "muon"}, "ema": 0.9},
        "train": {"micro_batch": 1, "batch_size": 2},
    },
    "recompute": {"model": {"n_layer": 6}, "train": {"recompute": True, "batch_size": 2 * ROWS}},
    "plain attention": {"train": {"attention_kernel": "plain"}},
    "through a cache policy": {"train": {"kv": "window(9), x=int4(hadamard)"}},
    "dropout": {"model": {"dropout": 0.1}},
    "large vocabulary": {"model": BIG, "optim": {"z_loss": 1e-4}},
    "fused head": {"model": BIG, "train": {"micro_batch": 64, "batch_size": 128}},
    "fused head, soft cap": {
        "model": BIG | {"logit_softcap": 15.0},
        "optim": {"z_loss": 1e-4},
        "train": {"micro_batch": 64, "batch_size": 64},
    },
    "longer block": {"model": {"block_size": 128}},
}


def config(case: dict[str, Any]) -> RunConfig:
    model = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 32, "vocab_size": 65}
    train = {"batch_size": ROWS, "micro_batch": ROWS, "attention_kernel": "sdpa"}
    data = {"model": model | case.get("model", {}), "train": train | case.get("train", {})}
    return validate(data | {"optim": case.get("optim", {})}, origin="test")


def counted(run: RunConfig) -> StepMemory:
    return ENGINE.step_memory(derive(run, train={"workers": 1}))


def held(run: RunConfig) -> int:
    """Bytes at the fullest moment of a real step, of everything that lives on the device."""
    state = ENGINE.init(run)
    shape = (run.train.batch_size, run.model.block_size + 1)
    tokens = np.random.default_rng(0).integers(0, run.model.vocabulary, shape)
    batch = Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=tokens[:, 1:].size)

    def step(number: int) -> None:
        with ENGINE.mark("step"):
            ENGINE.step(state, batch, config=run, share=0.0, step=number)

    step(0)  # makes the optimizer's state
    trace = ENGINE.trace(lambda: (step(1), step(2)), memory=True)
    last = max((s for s in trace.spans if s.mark and s.name == "step"), key=lambda s: s.start)
    before = next(size for at, size in reversed(trace.memory) if at < last.start)
    most = max(size for at, size in trace.memory if last.start <= at <= last.end)
    optimizer = state.optimizer
    lasting = [*state.model.parameters(), *state.model.buffers(), *(optimizer.average or [])]
    lasting += [tensor for own in optimizer.adamw.state.values() for tensor in own.values()]
    lasting += [] if optimizer.muon is None else list(optimizer.muon.arrays().values())
    return most - before + sum(tensor.nbytes for tensor in lasting)


def tolerance(run: RunConfig) -> int:
    return INSIDE + GENERATOR * run.model.n_layer * run.train.recompute


def tokens_of(run: RunConfig) -> int:
    """Bytes of a pass' inputs: the count has them, while on a CPU they lie in NumPy's memory."""
    return 8 * run.train.micro_batch * run.model.block_size


@pytest.mark.parametrize("name", CASES)
def test_the_count_is_what_a_step_holds(name: str) -> None:
    run = config(CASES[name])
    assert abs(counted(run).total - tokens_of(run) - held(run)) <= tolerance(run)


@pytest.mark.parametrize(
    ("real", "other"),
    [
        ({}, CASES["recompute"]),
        (CASES["recompute"], {"model": {"n_layer": 6}}),
        ({}, CASES["plain attention"]),
        (CASES["gpt2"], CASES["swiglu"]),
        (CASES["muon"], {}),
    ],
)
def test_the_check_sees_a_count_of_another_run(real: dict[str, Any], other: dict[str, Any]) -> None:
    run = config(real)
    assert abs(counted(config(other)).total - tokens_of(run) - held(run)) > 4 * tolerance(run)


def test_counting_takes_no_memory_and_changes_nothing() -> None:
    """A model of 1.5 billion parameters, whose step would take 27 GB."""
    run = config({"model": PRESETS["gpt2-xl"] | {"vocab_size": 50257}, "train": {"micro_batch": 1, "batch_size": 1}})
    generator = torch.get_rng_state()
    found: list[StepMemory] = []
    trace = ENGINE.trace(lambda: found.append(counted(run)), memory=True)
    held = [size for _, size in trace.memory]
    assert found[0].total > 25e9
    assert max(held) - held[0] < 2**20
    assert torch.equal(generator, torch.get_rng_state())


def test_the_parts_say_what_the_memory_is_for() -> None:
    run = config({"optim": {"matrices": {"kind": "muon"}, "ema": 0.9}})
    weights = 4 * sum(p.numel() for p in ENGINE.init(run).model.parameters())
    memory = counted(run)
    assert memory.parts["weights"] == weights
    assert memory.parts["optimizer state"] == memory.state
    saved = ENGINE.arrays(_stepped(run))[1]
    assert memory.state == pytest.approx(sum(a.nbytes for a in saved.values()), abs=200)  # counters of steps
    double = counted(derive(run, train={"micro_batch": 2 * ROWS, "batch_size": 2 * ROWS}))
    assert double.parts["activations"] == pytest.approx(2 * memory.parts["activations"], rel=0.01)
    logits = config(CASES["large vocabulary"])
    assert counted(logits).parts["logits and loss"] >= 4 * ROWS * 32 * 5000


def _stepped(run: RunConfig) -> Any:
    state = ENGINE.init(run)
    tokens = np.zeros((ROWS, run.model.block_size), dtype=np.int64)
    ENGINE.step(state, Batch(tokens_BT=tokens, targets_BT=tokens, count=tokens.size), config=run, share=0.0, step=0)
    return state


def test_workers_have_passes_of_their_own_and_shards_share_what_stays() -> None:
    run, placement = config({}), ENGINE.placement
    one = count_step(run, placement, rows=ROWS)
    two = count_step(run, placement, rows=ROWS, workers=2)
    for name, size in one.parts.items():
        assert two.parts[name] == size * (1 if name in ("weights", "optimizer state") else 2)
    half = count_step(run, placement, rows=ROWS, shards=2)
    assert half.parts == one.parts | {n: -(-one.parts[n] // 2) for n in ("weights", "optimizer state")}
    assert half.state == one.state
    engine = TorchEngine(device="cpu", threads=2, workers=2)
    assert engine.step_memory(derive(run, train={"workers": 2})) != two  # half the rows each
    assert engine.step_memory(derive(run, train={"workers": 2, "batch_size": 2 * ROWS})) == two


@pytest.mark.parametrize("name", CASES)
def test_the_bound_below_which_nobody_counts_is_one(name: str) -> None:
    run = config(CASES[name])
    for rows, workers in ((1, 4), (run.train.micro_batch, 1)):
        memory = count_step(run, ENGINE.placement, rows=rows, passes=2, workers=workers)
        assert memory.total < at_most(run, rows=rows, workers=workers)


def test_half_precision_is_counted_as_half() -> None:
    run = config({})
    half = replace(ENGINE.placement, dtype=torch.bfloat16)
    assert (
        count_step(run, half, rows=64).parts["activations"]
        < 0.8 * count_step(run, ENGINE.placement, rows=64).parts["activations"]
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gpt2", "modern", "recompute", "fused head"])
def test_on_a_gpu_the_count_is_what_the_allocator_says(name: str) -> None:
    """cuBLAS keeps a workspace of some MiB, and attention takes its kernel's own scratch."""
    engine = TorchEngine(device="cuda")
    run = config(CASES[name] | {"model": CASES[name].get("model", {}) | {"n_embd": 512, "block_size": 256}})
    state = engine.init(run)
    tokens = np.zeros((run.train.batch_size, run.model.block_size), dtype=np.int64)
    batch = Batch(tokens_BT=tokens, targets_BT=tokens, count=tokens.size)
    engine.step(state, batch, config=run, share=0.0, step=0).host()
    torch.cuda.reset_peak_memory_stats()
    engine.step(state, batch, config=run, share=0.0, step=1).host()
    found = torch.cuda.max_memory_allocated()
    assert engine.step_memory(run).total == pytest.approx(found, rel=0.1, abs=64 * 2**20)
