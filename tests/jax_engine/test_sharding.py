"""One device and eight give the same losses, however weights and rows are dealt out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

ROOT = Path(__file__).resolve().parents[2]


def start(*names: str, devices: int, **more: str) -> subprocess.Popen[str]:
    """A process with so many devices, which are one CPU by other names."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.jax_engine.meshes", *names],
        cwd=ROOT,
        env=os.environ | flags | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]  # gloo speaks as well


def same(found: dict[str, Any], one: dict[str, Any]) -> bool:
    """To a millionth, which is some roundings of float32."""
    near = pytest.approx([*one["losses"], one["score"], one["norm"]], rel=1e-6)
    return [*found["losses"], found["score"], found["norm"]] == near


def test_eight_devices_are_one() -> None:
    one, sharded, both = results(start("one", "fsdp", "fsdp and tensor", devices=8))
    assert one["losses"][0] - one["losses"][-1] > 0.1
    assert same(sharded, one)
    assert same(both, one)
    assert not same(one | {"score": one["score"] * (1 + 4e-6)}, one)  # the negative control
    assert [tuple(found["shard"]) for found in (one, sharded, both)] == [(128, 32), (128, 4), (32, 16)]
    assert [found["kept"] for found in (one, sharded, both)] == [found["shard"] for found in (one, sharded, both)]
    held = [found["parts"] for found in (one, sharded, both)]
    assert all(min(parts.values()) > 0 for parts in held)
    assert held[1]["weights"] < held[0]["weights"] / 4  # a device's own, not all of them
    assert held[1]["optimizer"] < held[0]["optimizer"] / 4


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_every_mesh(devices: int) -> None:
    one, *others = results(start("one", "data", "fsdp", "tensor", "fsdp and tensor", devices=devices))
    assert all(same(found, one) for found in others)


def ranks() -> list[dict[str, str]]:
    """What torchrun tells two processes of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] - 1
    all_know = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [all_know | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(2)]


@pytest.mark.slow
def test_a_dry_run_of_two_processes_ends(tmp_path: Path, tiny_text: Path, tiny_flags: list[str]) -> None:
    """What the main process measures alone does not wait for the other."""
    words = ["train", "my-text", "--data.path", str(tiny_text), "--data.tokenizer.kind", "chars", *tiny_flags]
    command = [sys.executable, "-m", "bonsaigpt", *words, "--engine", "jax", "--train.parallel", "fsdp", "--dry-run"]
    pair = [
        subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | rank, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in ranks()
    ]
    try:
        told = [process.communicate(timeout=300) for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], told
    assert "nothing was trained" in told[0][0]
    assert "of training, a full step takes" in told[0][0]


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    [one] = results(start("one", devices=1))
    pair = [start("fsdp", devices=2, **rank) for rank in ranks()]
    found = [results(process) for process in pair]
    assert found[1] == []  # the main process alone speaks
    assert len(found[0]) == 1
    assert same(found[0][0], one)
