"""How many rows a pass takes: as asked, as suits the device, and never more than its memory holds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.config import RunConfig, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import DeviceError
from bonsaigpt.room import Choice, _in_container, at_least, at_most, choose_rows, fitting_rows
from bonsaigpt.torch_engine import engine as engine_module
from bonsaigpt.torch_engine.device import room
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.memory import count_step
from bonsaigpt.trace import Room

ENGINE = TorchEngine(device="cpu", threads=1, workers=1)


def config(**train: object) -> RunConfig:
    model = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 65}
    settings = {"batch_size": 24, "compile": "off", "threads": 1}
    return validate({"model": model, "train": settings | train}, origin="test")


def batch(rows: int = 24) -> Batch:
    tokens = np.random.default_rng(0).integers(0, 65, (rows, 33))
    return Batch(tokens_BT=tokens[:, :-1], targets_BT=tokens[:, 1:], count=rows * 32)


@pytest.mark.parametrize(
    ("usable", "rows"), [(10**9, 24), (5 + 24, 24), (5 + 23, 12), (5 + 11, 8), (5 + 5, 5), (6, 1), (5, None)]
)
def test_the_largest_even_part_is_taken(usable: int, rows: int | None) -> None:
    """24 rows in passes of 24, 12, 8, 6, 5, ..., at 5 bytes and one for each row."""
    asked: list[int] = []

    def count(rows: int) -> int:
        asked.append(rows)
        return 5 + rows

    assert fitting_rows(count, 24, usable) == rows
    assert len(asked) == len(set(asked)) <= 4


def test_a_count_that_bends_is_believed_only_where_it_was_taken() -> None:
    """From 100 rows on the head holds less, as the fused one does."""

    def count(rows: int) -> int:
        return 1000 + (20 * rows if rows < 100 else 500 + 5 * rows)

    for usable in range(1000, 5000, 37):
        found = fitting_rows(count, 600, usable)
        parts = [math.ceil(600 / passes) for passes in range(1, 601)]
        assert found is None or (found in parts and count(found) <= usable)
        assert (found is None) == (count(1) > usable)


def choose(free: int, *, total: int = 10**15, run: RunConfig | None = None, rows: int = 24) -> Choice:
    run = run or config()

    def count(rows: int) -> int:
        return count_step(run, ENGINE.placement, rows=rows).total

    return choose_rows(
        run, count, least=lambda: count(1), rows=rows, own=24, workers=1, space=Room(free=free, total=total)
    )


def test_the_choice_shrinks_with_the_free_memory() -> None:
    whole = count_step(config(), ENGINE.placement, rows=24).total
    frees = [10 * whole, int(1.2 * whole), int(1.05 * whole), whole // 2, whole // 4]
    chosen = [choose(free) for free in frees]
    assert [c.rows for c in chosen[:2]] == [24, 24]
    assert sorted((c.rows for c in chosen), reverse=True) == [c.rows for c in chosen]
    assert chosen[-1].rows < chosen[2].rows < 24
    for free, choice in zip(frees, chosen, strict=True):
        assert choice.fits
        assert count_step(config(), ENGINE.placement, rows=choice.rows).total <= 0.9 * free
    assert "24 need" in chosen[-1].why
    assert "free" in chosen[-1].why


def test_where_not_even_one_row_fits_the_error_comes_only_if_it_is_sure() -> None:
    least = count_step(config(), ENGINE.placement, rows=1).total
    unsure = choose(least // 2, total=least)
    assert (unsure.rows, unsure.fits) == (1, False)
    assert "one sequence" in unsure.why
    with pytest.raises(DeviceError, match=r"even with one sequence.*--train\.recompute true.*smaller model"):
        choose(least // 2, total=least - 1)
    recomputing = config(recompute=True)
    least = count_step(recomputing, ENGINE.placement, rows=1).total
    with pytest.raises(DeviceError) as refused:
        choose(least // 2, total=least - 1, run=recomputing)
    assert "recompute" not in str(refused.value)


def test_what_is_asked_is_done_and_doubted_aloud() -> None:
    run = config(micro_batch=24)
    assert choose(10**12, run=run) == Choice(24, "as asked", fits=True)
    doubted = choose(count_step(run, ENGINE.placement, rows=24).total, run=run)
    assert (doubted.rows, doubted.fits) == (24, False)
    assert doubted.why.startswith("as asked, but")


def test_nobody_counts_where_it_is_plain_or_unknown_and_a_failure_is_no_reason_not_to_train() -> None:
    def count(rows: int) -> int:
        raise RuntimeError("no fake tensors here")

    def chosen(space: Room | None) -> Choice:
        return choose_rows(config(), count, least=lambda: 0, rows=24, own=24, workers=1, space=space)

    assert chosen(None) == chosen(Room(10**12, 10**12)) == Choice(24, "24 sequences in one pass", fits=True)
    failed = chosen(Room(1000, 1000))
    assert (failed.rows, failed.fits) == (24, True)
    assert "could not be counted (RuntimeError)" in failed.why


def test_the_engine_fits_its_passes_and_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = ENGINE.resolve(config(), batch())
    assert before.train.micro_batch == 24  # 768 tokens
    needed = ENGINE.step_memory(before).total
    monkeypatch.setattr(engine_module, "room", lambda device: Room(free=needed * 2 // 3, total=10**12))
    after, why = ENGINE.resolve(config(), batch())
    assert 1 <= after.train.micro_batch < 24
    assert "free" in why["train.micro_batch"]
    assert ENGINE.step_memory(after).total <= 0.9 * needed * 2 / 3
    losses = [
        ENGINE.step(ENGINE.init(run), batch(), config=run, share=1.0, step=0).host()["grad_norm"]
        for run in (before, after)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("model", [{}, {"n_layer": 5, "block_size": 256}, {"mlp": {"kind": "swiglu"}, "n_embd": 64}])
@pytest.mark.parametrize("optim", [{}, {"matrices": {"kind": "muon"}}, {"ema": 0.9}])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_bounds_hold_the_count_between_them(model: dict, optim: dict, recompute: bool) -> None:
    base = config(recompute=recompute).model_dump(exclude_none=True)
    run = validate(base | {"model": base["model"] | model, "optim": optim}, origin="test")
    for rows in (1, 24):
        counted = count_step(run, ENGINE.placement, rows=rows).total
        assert at_least(run, shards=1) < counted < at_most(run, rows=rows, workers=1)
    unknown = validate(base | {"model": base["model"] | model | {"vocab_size": None}, "optim": optim}, origin="test")
    assert at_least(unknown, shards=1) < at_least(run, shards=1)


def test_a_hopeless_model_is_refused_without_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    least = at_least(config(), shards=1)
    monkeypatch.setattr(TorchEngine, "step_memory", lambda *_: pytest.fail("a step was counted"))
    monkeypatch.setattr(engine_module, "room", lambda device: Room(free=1000, total=least))
    ENGINE.check_fits(config())
    monkeypatch.setattr(engine_module, "room", lambda device: Room(free=1000, total=least - 1))
    with pytest.raises(DeviceError, match=r"this model needs .* at least.*try a smaller model\.n_embd"):
        ENGINE.check_fits(config())
    monkeypatch.setattr(engine_module, "room", lambda device: None)
    ENGINE.check_fits(config())


def test_where_it_may_not_fit_no_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "room", lambda device: Room(free=1000, total=10**12))
    monkeypatch.setattr(TorchEngine, "time_steps", lambda *_: pytest.fail("a step was taken"))
    resolved, why = ENGINE.resolve(config(compile="auto"), batch())
    assert (resolved.train.micro_batch, resolved.train.compile) == (1, "off")
    assert "may not fit" in why["train.compile"]
    assert "may not fit" in why["train.precision"]
    asked, why = ENGINE.resolve(config(compile="on", precision="fp32"), batch())
    assert (asked.train.compile, why["train.precision"]) == ("on", "as asked")
    assert why["train.compile"].startswith("on") or "compiler" in why["train.compile"]


def test_what_is_free_is_read() -> None:
    here = room(torch.device("cpu"))
    if here is None:
        pytest.skip("no /proc/meminfo here")
    assert 0 < here.free < here.total < 2**50


GIB = 2**30
MACHINE = Room(free=8 * GIB, total=16 * GIB)


def group(folder: Path, *, most: str, held: int, droppable: int, version: int = 2) -> None:
    """Write the figures of a control group as the kernel shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    limit, usage = ("memory.max", "memory.current") if version == 2 else _V1_FILES
    (folder / limit).write_text(f"{most}\n")
    (folder / usage).write_text(f"{held}\n")
    own, all_below = (
        (f"inactive_file {droppable}\n", "") if version == 2 else ("", f"total_inactive_file {droppable}\n")
    )
    (folder / "memory.stat").write_text(f"anon 5\n{own}{all_below}")


_V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_V1_NO_LIMIT = str(2**63 - 4096)


def own_group(root: Path, text: str) -> None:
    """Write /proc/self/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_without_control_groups_or_limits_the_machine_counts(tmp_path: Path) -> None:
    assert _in_container(MACHINE, tmp_path) == MACHINE
    own_group(tmp_path, "0::/job\n")
    assert _in_container(MACHINE, tmp_path) == MACHINE
    group(tmp_path / "sys/fs/cgroup/job", most="max", held=3 * GIB, droppable=0)
    assert _in_container(MACHINE, tmp_path) == MACHINE


@pytest.mark.parametrize("inner", ["max", str(12 * GIB)])
def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path, inner: str) -> None:
    mount = tmp_path / "sys/fs/cgroup"
    own_group(tmp_path, "0::/slice/job/step\n")
    group(mount / "slice/job/step", most=inner, held=2 * GIB, droppable=GIB)
    assert _in_container(MACHINE, tmp_path).free == 8 * GIB
    group(mount / "slice", most=str(4 * GIB), held=3 * GIB, droppable=GIB)  # a sibling holds some of it
    assert _in_container(MACHINE, tmp_path) == Room(free=2 * GIB, total=4 * GIB)
    group(mount / "slice/job/step", most=str(3 * GIB), held=3 * GIB, droppable=0)
    assert _in_container(MACHINE, tmp_path) == Room(free=0, total=3 * GIB)


def test_a_container_sees_its_limit_at_the_mount(tmp_path: Path) -> None:
    """Without a namespace of control groups the path is the one outside, and its folders are not there."""
    own_group(tmp_path, "0::/system.slice/docker-1234.scope\n")
    group(tmp_path / "sys/fs/cgroup", most=str(4 * GIB), held=3 * GIB, droppable=GIB)
    assert _in_container(MACHINE, tmp_path) == Room(free=2 * GIB, total=4 * GIB)


def test_version_1_is_read_too(tmp_path: Path) -> None:
    mount = tmp_path / "sys/fs/cgroup/memory"
    own_group(tmp_path, "7:cpu,cpuacct:/job\n4:memory:/batch/job\n1:name=systemd:/user\n0::/user\n")
    group(mount / "batch/job", most=_V1_NO_LIMIT, held=3 * GIB, droppable=GIB, version=1)
    assert _in_container(MACHINE, tmp_path) == MACHINE
    group(mount / "batch", most=str(4 * GIB), held=3 * GIB, droppable=GIB, version=1)
    assert _in_container(MACHINE, tmp_path) == Room(free=2 * GIB, total=4 * GIB)
    group(mount / "job", most=str(GIB), held=0, droppable=0, version=1)  # of the name, but another controller's
    assert _in_container(MACHINE, tmp_path) == Room(free=2 * GIB, total=4 * GIB)
