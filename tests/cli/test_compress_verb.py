"""`bonsai compress`: a plan and nothing else, a run like any other, healed to the same bits after a stop, and a limit
on the loss that holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.spec import parameter_count

SMALL = ["--calibrate", 400, "--structure", "lowrank"]


def bonsai(*words: object) -> int:
    return main([str(word) for word in words])


def scored(address: str, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    assert bonsai("eval", address, "--json") == 0
    return json.loads(capsys.readouterr().out)["loss"]


def count(run: str) -> int:
    return parameter_count(RunDirectory.open(Path(run)).config.model)


def test_a_dry_run_shows_a_plan_and_writes_only_that(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ["--shapes", "transformer.h.0.mlp.c_fc.weight"]
    command = ["compress", "tiny", "--dry-run", *SMALL, *shapes]
    assert bonsai(*command, "--plan", "p.toml", "--structure", "kronecker,lowrank") == 0
    out = capsys.readouterr().out
    assert "nothing was compressed" in out
    assert "A first" in out
    assert "V first" in out
    assert "together" in out
    assert Path("p.toml").is_file()
    assert [p.name for p in Path("runs").iterdir()] == ["tiny"]


def test_the_result_is_a_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bonsai("compress", "tiny", *SMALL, "--target-params", 0.4, "--name", "small") == 0
    said = json.loads(Path("runs/small/environment.json").read_text())["compressed"]
    assert said["parent"] == "runs/tiny@4"
    assert scored("runs/small", capsys) == pytest.approx(said["loss"], abs=1e-5)
    assert scored("runs/tiny", capsys) == pytest.approx(said["dense_loss"], abs=1e-5)
    mlp = 2 * 16 * 64
    assert 0.5 * mlp < count("runs/tiny") - count("runs/small") < 0.7 * mlp
    assert bonsai("sample", "runs/small", "--tokens", 3) == 0
    assert bonsai("report", "runs/small") == 0
    assert bonsai("compare", "runs/tiny", "runs/small") == 0
    assert bonsai("compress", "small", *SMALL, "--layers", "*.attn.*", "--name", "smaller") == 0
    assert bonsai("compress", "runs/tiny", "--plan", "runs/small/plan.toml", "--name", "again", "--calibrate", 400) == 0
    one, two = (RunDirectory.open(Path(f"runs/{name}")).load().model for name in ("small", "again"))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert bonsai("train", "small", "--resume", "--train.steps", 2) == 0


def test_experts_begin_as_what_was_compressed(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", "tiny", "--calibrate", 400, "--target-params", 0.4, "--structure", "kronecker"]
    assert bonsai(*command, "--experts", 3, "--active", 1, "--name", "three") == 0
    assert "a token meets 1 of 3 experts" in " ".join(capsys.readouterr().out.split())
    said = json.loads(Path("runs/three/environment.json").read_text())["compressed"]
    assert scored("runs/three", capsys) == pytest.approx(said["loss"], abs=1e-5)
    assert bonsai("train", "three", "--resume", "--train.steps", 3) == 0
    assert bonsai("sample", "runs/three", "--tokens", 3) == 0
    assert bonsai("compress", "tiny", *SMALL, "--experts", 2, "--active", 3) == 2
    assert "active = 3 of 2 experts" in capsys.readouterr().err
    assert bonsai("compress", "three", *SMALL) == 2
    assert "compress the dense run and make experts" in capsys.readouterr().err


def test_healing_goes_on_to_the_same_bits_after_a_stop(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teaching = ["--distill", "--optim.distill.hidden", 0.1, "--optim.schedule.kind", "constant"]
    steps = ["--train.eval_interval", 2, "--train.keep_every", 2, "--train.compile", "off"]
    assert bonsai("compress", "tiny", *SMALL, "--heal", 4, *teaching, *steps, "--name", "whole") == 0
    assert "healed" in capsys.readouterr().out
    assert bonsai("compress", "tiny", *SMALL, "--heal", 2, *teaching, *steps, "--name", "halves") == 0
    assert bonsai("train", "halves", "--resume", "--train.steps", 4) == 0
    one, two = (RunDirectory.open(Path(f"runs/{name}")) for name in ("whole", "halves"))
    assert one.config.optim.distill.kind == "logits"
    assert one.config.optim.lr_scale == two.config.optim.lr_scale
    first, second, fresh = one.load("4"), two.load("4"), one.load("2")
    assert all(first.model[n].tobytes() == second.model[n].tobytes() for n in first.model)
    assert any(first.model[n].tobytes() != fresh.model[n].tobytes() for n in first.model)


def test_a_limit_on_the_loss_holds(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = scored("runs/tiny", capsys)
    for limit in (0.0, 0.02):
        assert bonsai("compress", "tiny", *SMALL, "--max-loss", limit, "--name", f"at{limit}") == 0
        assert scored(f"runs/at{limit}", capsys) <= dense + limit + 1e-6
    assert bonsai("compress", "tiny", *SMALL, "--max-block-loss", 0, "--init", "random", "--name", "none") == 0
    assert count("runs/none") <= count("runs/tiny")


def test_bytes_and_counts_are_of_the_whole_model(workshop: Path) -> None:
    whole = count("runs/tiny")
    assert bonsai("compress", "tiny", *SMALL, "--target-params", whole - 500, "--name", "a") == 0
    assert bonsai("compress", "tiny", *SMALL, "--target-bytes", 4 * (whole - 500), "--name", "b") == 0
    assert count("runs/a") == count("runs/b") <= whole - 500


@pytest.mark.parametrize("kind", ["monarch", "narrow", "kronecker+sparse"])
def test_every_structure_has_its_way(kind: str, workshop: Path) -> None:
    assert bonsai("compress", "tiny", "--calibrate", 400, "--structure", kind, "--name", "x") == 0
    assert count("runs/x") < count("runs/tiny")
    assert kind in Path("runs/x/plan.toml").read_text()
