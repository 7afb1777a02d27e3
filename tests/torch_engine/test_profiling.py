"""What is recorded is what happened, in every thread; and without a recording a mark is nothing."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._C._autograd import DeviceType

from bonsaigpt.config import RunConfig, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.torch_engine import profiling
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.profiling import mark, record
from bonsaigpt.trace import MARKS, Trace

CPU = torch.device("cpu")


def config(**optim: object) -> RunConfig:
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11}
    return validate({"model": model, "train": {"batch_size": 4}, "optim": optim}, origin="test")


def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(0, 11, (4, 9))
    return Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=32)


def steps(engine: TorchEngine, run: RunConfig, count: int = 1, **how: Any) -> Trace:
    state = engine.init(run)

    def work() -> None:
        for step in range(count):
            with engine.mark("step"):
                engine.step(state, batch(), config=run, share=1.0, step=step).host()

    work()
    return engine.trace(work, **how)


def marks(trace: Trace) -> dict[str, list[str]]:
    """Names of the marks on each lane, each once."""
    found: dict[str, list[str]] = {}
    for span in trace.spans:
        if span.mark and span.name not in found.setdefault(span.lane, []):
            found[span.lane].append(span.name)
    return found


def test_a_step_of_two_workers_is_marked_in_both() -> None:
    engine = TorchEngine(device="cpu", threads=2, workers=2)
    trace = steps(engine, config(matrices={"kind": "muon"}))
    first, second = sorted(marks(trace).values(), key=len, reverse=True)
    assert first == list(MARKS)
    assert second == ["forward", "backward", "optimizer"]
    products = {s.lane for s in trace.spans if s.name == "aten::mm"}
    assert len(products) == 2


def test_nothing_is_marked_while_nobody_records() -> None:
    assert mark("forward") is mark("backward")
    assert isinstance(mark("forward"), nullcontext)
    record(lambda: None, CPU)
    assert isinstance(mark("forward"), nullcontext)  # nor after


def test_a_recording_that_fails_leaves_nothing_switched_on() -> None:
    with pytest.raises(ZeroDivisionError):
        record(lambda: 1 // 0, CPU)
    assert isinstance(mark("forward"), nullcontext)


def test_the_backward_pass_knows_its_forward_operators() -> None:
    trace = steps(TorchEngine(device="cpu", threads=1), config())
    causes = {
        (trace.spans[s.cause].name, s.name) for s in trace.spans if s.cause is not None and s.name.endswith("Backward0")
    }
    assert ("aten::mm", "MmBackward0") in causes
    assert ("aten::native_layer_norm", "NativeLayerNormBackward0") in causes
    assert ("aten::gelu", "GeluBackward0") in causes
    assert not any(made == "aten::gelu" and not by.endswith("GeluBackward0") for made, by in causes)


def test_products_come_with_their_shapes() -> None:
    trace = steps(TorchEngine(device="cpu", threads=1), config())
    shapes = {s.shapes for s in trace.spans if s.name == "aten::mm"}
    assert ((32, 16), (16, 48)) in shapes  # c_attn
    assert ((32, 16), (16, 11)) in shapes  # the head


def test_memory_is_followed_to_the_byte() -> None:
    kept: list[torch.Tensor] = []

    def work() -> None:
        torch.empty(3 * 2**20, dtype=torch.uint8)  # at once given back
        kept.append(torch.empty(2**20, dtype=torch.uint8))

    points = record(work, CPU, memory=True).memory
    start = points[0][1]
    assert [held - start for _, held in points[1:]] == [3 * 2**20, 0, 2**20]
    again = record(lambda: None, CPU, memory=True).memory
    assert again[0][1] == start + 2**20  # what is alive at the start is known, allocated by whomever


def test_alone_means_without_workers() -> None:
    engine = TorchEngine(device="cpu", threads=2, workers=2)
    run = config()
    state = engine.init(run)
    alone = engine.alone(state)
    assert alone.model is state.model
    assert alone.optimizer is state.optimizer

    def work() -> None:
        engine.step(alone, batch(), config=run, share=1.0, step=0)

    assert len(marks(engine.trace(work))) == 1
    assert replace(alone, pool=state.pool, layout=state.layout) == state
    assert alone.layout.learners == state.layout.learners[:1]


def test_the_chrome_trace_is_json(tmp_path: Path) -> None:
    steps(TorchEngine(device="cpu", threads=1), config(), chrome=tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"step", "forward", "aten::mm"} <= {event.get("name") for event in events}


def test_a_thread_that_is_not_ours_is_recorded_too() -> None:
    def work() -> None:
        thread = threading.Thread(target=lambda: torch.ones(3).square())
        thread.start()
        thread.join()

    assert "aten::square" in {s.name for s in record(work, CPU).spans}


class Event(SimpleNamespace):
    """What kineto tells of one event; attributes become methods."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value if name.startswith("_") else lambda: value


def event(name: str, start: int, end: int, **more: Any) -> Event:
    usual = {
        "device_type": DeviceType.CPU,
        "device_index": 0,
        "correlation_id": 0,
        "linked_correlation_id": 0,
        "start_thread_id": 1,
        "fwd_thread_id": 0,
        "sequence_nr": -1,
        "scope": 0,
        "shapes": [],
        "is_user_annotation": False,
        "is_hidden_event": False,
        "is_async": False,
    }
    return Event(name=name, start_ns=start, end_ns=end, **usual | more)


def test_kernels_find_the_operator_that_launched_them() -> None:
    """As CUPTI numbers them: a launch and its kernel are linked to the operator's number."""
    gpu = {"device_type": DeviceType.CUDA, "device_index": 1}
    spans = profiling._spans(
        [
            event("kernel", 30, 90, correlation_id=500, linked_correlation_id=7, **gpu),
            event("aten::mm", 10, 20, correlation_id=7, start_thread_id=3),
            event("cudaLaunchKernel", 12, 18, correlation_id=500, linked_correlation_id=7, start_thread_id=140001),
            event("forward", 5, 25, correlation_id=6, start_thread_id=3, scope=7, is_user_annotation=True),
            event("forward", 30, 90, is_user_annotation=True, **gpu),  # the mark's shadow on the device
            event("[memory]", 11, 11),
        ]
    )
    assert [(s.name, s.lane, s.device, s.mark) for s in spans] == [
        ("forward", "thread 3", False, True),
        ("aten::mm", "thread 3", False, False),
        ("cudaLaunchKernel", "thread 3", False, False),
        ("kernel", "cuda:1", True, False),
    ]
    assert spans[3].cause == 1


@pytest.mark.gpu
def test_a_gpu_is_recorded() -> None:
    engine = TorchEngine(device="cuda")
    trace = steps(engine, config())
    kernels = [s for s in trace.spans if s.device]
    assert kernels
    assert sum(s.cause is not None for s in kernels) > 0.9 * len(kernels)
    assert steps(engine, config(), memory=True).memory
