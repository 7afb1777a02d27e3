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


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_every_mesh(devices: int) -> None:
    one, *others = results(start("one", "data", "fsdp", "tensor", "fsdp and tensor", devices=devices))
    assert all(same(found, one) for found in others)


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    [one] = results(start("one", devices=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] - 1
    rank = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pair = [start("fsdp", devices=2, **rank, RANK=str(i), LOCAL_RANK=str(i)) for i in range(2)]
    found = [results(process) for process in pair]
    assert found[1] == []  # the main process alone speaks
    assert len(found[0]) == 1
    assert same(found[0][0], one)
