"""The JAX engine from outside: what it refuses, what is missing, and runs that change engines."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bonsaigpt.cli import main
from bonsaigpt.config import derive, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.errors import ConfigError, DeviceError
from bonsaigpt.processes import Process
from bonsaigpt.trace import Room

WITHOUT_JAX = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from bonsaigpt.cli import main
sys.exit(main({words}))
"""


@pytest.mark.parametrize("blocked", [{"jax", "jaxlib", "optax"}, {"optax"}])
def test_without_jax_or_a_piece_of_it_a_sentence(
    blocked: set[str], tmp_path: Path, tiny_text: Path, tiny_flags: list[str]
) -> None:
    """And everything else works: the same command with the other engine gets as far as its table."""
    words = ["train", "my-text", "--data.path", str(tiny_text), "--runs", str(tmp_path), *tiny_flags]
    words += ["--corpora", str(tmp_path), "--data.tokenizer.kind", "chars"]
    found = []
    for more in (["--engine", "jax"], ["--dry-run"]):
        code = WITHOUT_JAX.format(blocked=blocked, words=words + more)
        found.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False))
        if blocked == {"optax"}:
            break
    assert found[0].returncode == 2
    [line] = found[0].stderr.strip().splitlines()
    assert "pip install 'bonsaigpt[jax]', or --engine torch" in line
    assert sorted(blocked)[0] in line
    assert all(done.returncode == 0 for done in found[1:]), found[-1].stderr


def test_a_jax_that_does_not_load_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libcuda broken")

    monkeypatch.setattr("bonsaigpt.engines.import_module", broken)
    with pytest.raises(DeviceError, match=r"jax is here, but does not load: libcuda broken\. .* --engine torch"):
        load_engine("jax")
    with pytest.raises(ImportError, match="libcuda"):  # of torch it is ours to mend
        load_engine("torch")


def test_an_unknown_engine_suggests_the_right_one() -> None:
    with pytest.raises(DeviceError, match="Did you mean 'jax'"):
        load_engine("jaxx")


def test_sharing_matrices_is_for_this_engine_alone() -> None:
    validate({"train": {"tensor_parallel": 2, "engine": "jax"}}, origin="test")
    with pytest.raises(ConfigError, match="add --engine jax, or use 1"):
        validate({"train": {"tensor_parallel": 2}}, origin="test")


@pytest.fixture(scope="module")
def engine() -> Any:
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    return load_engine("jax", device="cpu")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": {"attention": {"kind": "latent"}}}, "latent attention"),
        ({"model": {"mlp": {"kind": "moe"}}}, "mixtures of experts"),
        ({"optim": {"distill": {"kind": "logits", "teacher": "x"}}}, "teacher"),
        ({"train": {"kv": "window(8), int4"}}, "cache policy"),
        ({"optim": {"objective": {"kind": "reward"}}, "data": {"kind": "sort"}, "train": {"batch_size": 8}}, "rewards"),
        ({"train": {"engine": "jax", "tensor_parallel": 3}}, "shared by 3"),
        (
            {"train": {"memory": {"kind": "hidden", "length": 4}}, "data": {"kind": "stdlib", "order": "streams"}},
            "memory",
        ),
    ],
)
def test_what_is_not_built_is_refused_before_anything_is_made(
    engine: Any, settings: dict[str, Any], words: str
) -> None:
    config = validate(
        {"model": {"vocab_size": 9, "position": {"kind": "none"}} | settings.pop("model", {}), **settings},
        origin="test",
    )
    with pytest.raises(DeviceError, match=f"{words}.*: use --"):
        engine.check_fits(config)


def test_what_the_protocol_asks_is_there_or_refused(engine: Any) -> None:
    asked = {name for name in vars(Engine) if not name.startswith("_")}
    assert {"step", "target_scores"} <= asked
    for name in sorted(asked - set(dir(engine)) - set(vars(engine))):
        with pytest.raises(DeviceError, match=r"the JAX engine does not .*: use --engine torch"):
            getattr(engine, name)(None, batch=1)
    with pytest.raises(AttributeError, match="no attribute 'not_asked'"):
        engine.not_asked  # noqa: B018


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({"device": "mps"}, "not one of the JAX engine's"),
        ({"device": "cuda"}, "JAX finds none"),
        ({"device": "cpu:7"}, "JAX finds 1"),
        ({"device": "cpu", "precision": "fp16"}, "no loss scaling"),
        ({"device": "cpu", "precision": "bf16"}, "slow on cpu"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(engine: Any, placement: dict[str, Any], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        load_engine("jax", **placement)


def test_a_run_changes_engines(
    engine: Any,
    tmp_path: Path,
    tiny_text: Path,
    tiny_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained in JAX, gone on in PyTorch, and back; the same numbers as one that stayed in PyTorch."""
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    steps = ["--train.eval_interval", "2", "--optim.schedule.kind", "constant", "--data.tokenizer.kind", "chars"]
    base = ["train", "my-text", "--data.path", str(tiny_text), *tiny_flags, *steps]
    assert main([*base, "--name", "torch", "--train.steps", "6"]) == 0
    assert main([*base, "--name", "both", "--train.steps", "2", "--engine", "jax"]) == 0
    assert main(["train", "runs/both", "--resume", "--train.steps", "4", "--engine", "torch"]) == 0
    assert "train.engine: jax -> torch" in capsys.readouterr().out
    assert main(["train", "runs/both", "--resume", "--train.steps", "6", "--engine", "jax"]) == 0
    losses = [
        [
            json.loads(line)["loss"]
            for line in (Path("runs") / name / "metrics.jsonl").read_text().splitlines()
            if "loss" in json.loads(line)
        ]
        for name in ("torch", "both")
    ]
    assert len(losses[0]) >= 3
    assert losses[1][-1] == pytest.approx(losses[0][-1], rel=1e-5)
    assert np.ptp(losses[0]) > 0.01
    capsys.readouterr()
    texts = []
    for name in ("torch", "jax"):
        assert main(["sample", "runs/both", "--prompt", "the", "--tokens", "12", "--engine", name]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def batch_of(rows: int) -> Batch:
    made = np.random.default_rng(rows).integers(0, 7, (rows, 5))
    return Batch(tokens_BT=made[:, :-1], targets_BT=made[:, 1:], count=4 * rows)


def test_a_ramp_of_batches_compiles_few_programs(engine: Any) -> None:
    """And its steps are what they are uncut."""
    from bonsaigpt.jax_engine.step import cut

    cuts = [cut(batch_of(rows), 5, full=20, devices=1) for rows in range(1, 21)]
    assert {made.tokens.shape for made, _ in cuts} == {(1, 1, 4), (1, 2, 4), (1, 4, 4), (1, 5, 4), (2, 5, 4), (4, 5, 4)}
    assert [parts for _, parts in cuts[::5]] == [1, 2, 3, 4]
    model = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 4, "vocab_size": 7}
    train = {"batch_size": 8, "micro_batch": 3, "precision": "fp32", "batch_ramp": {"kind": "linear", "steps": 9}}
    config = validate({"model": model, "train": train}, origin="test")
    state = engine.init(config)
    told = [engine.step(state, batch_of(n), config=config, share=0.0, step=0).host() for n in (4, 5, 6, 7, 8)]
    assert state.step.traces == 2  # two micro-batches of three rows, and up to four
    whole = derive(config, train={"micro_batch": 7, "batch_size": 7, "batch_ramp": {"kind": "none"}})
    alone = engine.step(engine.init(whole), batch_of(7), config=whole, share=0.0, step=0).host()
    assert told[3] == pytest.approx(alone, rel=1e-5)
    assert told[4] != pytest.approx(alone, rel=1e-5)  # the negative control: other rows


def test_a_pass_takes_as_many_rows_as_fit(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 65}
    config = validate({"model": model, "train": {"batch_size": 24, "precision": "fp32"}}, origin="test")
    rows = np.zeros((24, 33), np.int64)
    batch = Batch(tokens_BT=rows[:, :-1], targets_BT=rows[:, 1:], count=24 * 32)
    resolved, _ = engine.resolve(config, batch)
    assert resolved.train.micro_batch == 24
    needed = engine.step_memory(resolved)
    assert needed.total == sum(needed.parts.values()) > needed.parts["weights"]
    monkeypatch.setattr(engine, "room", lambda: Room(free=needed.total * 2 // 3, total=10**12), raising=False)
    resolved, why = engine.resolve(config, batch)
    assert 1 < resolved.train.micro_batch < 24
    assert engine.step_memory(resolved).total <= engine.room().usable
    assert "24 need" in why["train.micro_batch"]
    monkeypatch.setattr(engine, "room", lambda: Room(free=1000, total=1000), raising=False)
    with pytest.raises(DeviceError, match="this model needs"):
        engine.check_fits(config)


@dataclass(frozen=True)
class Chip:
    """A device that is not here."""

    platform: str
    process_index: int = 0


@pytest.mark.parametrize(("platform", "devices", "times"), [("gpu", 4, 4), ("cpu", 8, 1)])
def test_the_ceiling_is_that_of_all_devices(
    engine: Any, platform: str, devices: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of CPUs by other names it is that of the one."""
    monkeypatch.setattr(engine, "placement", replace(engine.placement, devices=(Chip(platform),) * devices))
    monkeypatch.setitem(vars(engine), "_ceiling", 1e9)
    assert engine.peak_flops() == times * 1e9


@pytest.mark.parametrize(("here", "own"), [("4", [3]), ("1", None)])
def test_processes_of_one_machine_share_its_gpus_out(here: str, own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    from bonsaigpt.jax_engine.distributed import World

    told: list[Any] = []
    monkeypatch.setattr("jax.distributed.initialize", lambda address, **words: told.append((address, words)))
    for name, value in {"MASTER_ADDR": "host", "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": here}.items():
        monkeypatch.setenv(name, value)
    World(Process(rank=7, size=8, local_rank=3))
    assert told == [("host:29501", {"num_processes": 8, "process_id": 7, "local_device_ids": own})]


@pytest.mark.parametrize(("width", "fused"), [(64, True), (12, False), (160, False)])
def test_cudnn_is_asked_for_heads_that_it_takes(width: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    from bonsaigpt.jax_engine.attention import attend

    asked: list[str] = []

    def kernel(q: Any, k: Any, v: Any, *, is_causal: bool, implementation: str) -> Any:
        asked.append(implementation)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    q = jax.numpy.ones((1, 2, 4, width), jax.numpy.bfloat16)
    assert attend(q, q, q, None, fused=True).shape == q.shape
    assert asked == ["cudnn"] * fused
