"""The JAX engine from outside: what it refuses, what is missing, and runs that change engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bonsaigpt.cli import main
from bonsaigpt.config import validate
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.errors import ConfigError, DeviceError

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
        ({"model": {"structure": {"*.c_fc.weight": {"kind": "dora", "rank": 2}}}}, "adapters"),
        ({"optim": {"lr_scale": {"*.wte.*": 0.0}}}, "freeze"),
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
    with pytest.raises(DeviceError, match=f"the JAX engine does not .*{words}.*: use --engine torch"):
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
