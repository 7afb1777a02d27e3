"""Runs whose weights are structured go through every verb, resume to the bit, and merge into a plain run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.measure import evaluate
from bonsaigpt.measure import profile as profiling
from bonsaigpt.structure import merge

RECIPE = """
extends = "my-text"

[model.structure]
"*.c_attn.weight" = {kind = "monarch", a_shape = [8, 4], rank = 2}
"*.attn.c_proj.weight" = {kind = "lowrank", rank = 4}
"*.mlp.c_fc.weight" = {kind = "kronecker", a_shape = [8, 4], terms = 3}
"*.mlp.c_proj.weight" = {kind = "kronecker+sparse", a_shape = [4, 8], terms = 3, scalers = true, columns = [1, 5]}
"transformer.wte.weight" = {kind = "kronecker", a_shape = [1, 8], terms = 4}
"""


def bonsai(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def flags(tmp_path: Path, tiny_text: Path, tiny_flags: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`bonsai train` of a recipe in TOML with every structure, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    monkeypatch.setattr(profiling, "_MACHINE_SECONDS", 0.002)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    (tmp_path / "mine.toml").write_text(RECIPE, encoding="utf-8")
    return ["mine.toml", "--data.path", "text.txt", "--data.tokenizer.kind", "chars", *tiny_flags]


def test_every_verb_takes_them(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["--train.steps", 8, "--train.eval_interval", 4]
    assert bonsai("train", *flags, "--name", "dry", *steps, "--dry-run") == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert bonsai("train", *flags, "--name", "whole", *steps) == 0
    assert bonsai("sample", "runs/whole", "--tokens", 5) == 0
    assert bonsai("profile", "runs/whole", "--steps", 1, "--warmup", 1) == 0
    capsys.readouterr()
    assert bonsai("eval", "runs/whole", "--json") == 0
    factored = json.loads(capsys.readouterr().out)

    saved = RunDirectory.open(Path("runs/whole"))
    names = sorted(n.partition(".mlp.")[2] for n in saved.load("last").model if ".mlp." in n)
    assert names == [
        *(f"c_fc.weight.{factor}" for factor in "AB"),
        *(f"c_proj.weight.{factor}" for factor in "ABCs"),
    ]
    plain, values = merge(saved.config.model, saved.load().model)
    assert not plain.structure
    engine = load_engine("torch", device="cpu", threads=1)
    source = open_source(saved.config, Path("corpora"))
    assert evaluate(engine, engine.model(plain, values), source).loss == pytest.approx(factored["loss"], abs=1e-5)


@pytest.mark.parametrize("more", [[], ["--optim.matrices.kind", "muon", "--train.workers", "2"]], ids=["adamw", "muon"])
def test_resume_is_exact(flags: list[str], more: list[str]) -> None:
    steps = ["--train.eval_interval", 4, "--optim.schedule.kind", "constant", *more]
    assert bonsai("train", *flags, "--name", "whole", "--train.steps", 8, *steps) == 0
    assert bonsai("train", *flags, "--name", "halves", "--train.steps", 4, *steps) == 0
    assert bonsai("train", "runs/halves", "--resume", "--train.steps", 8) == 0
    one, two = (RunDirectory.open(Path(f"runs/{n}")).load("last") for n in ("whole", "halves"))
    assert one.state["step"] == two.state["step"] == 8
    assert one.model.keys() == two.model.keys()
    assert all(one.model[n].tobytes() == two.model[n].tobytes() for n in one.model)
    assert all(one.optimizer[n].tobytes() == two.optimizer[n].tobytes() for n in one.optimizer)


def test_a_structure_is_a_flag_too_and_a_wrong_one_leaves_nothing(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = '{"*.mlp.c_fc.weight": {"kind": "kronecker", "a_shape": [7, 4]}}'
    assert bonsai("train", *flags, "--name", "x", "--model.structure", given) == 2
    assert "7 does not divide its 64 outputs" in capsys.readouterr().err
    assert not Path("runs").exists()
    given = '{"*.mlp.c_fc.weight": {"kind": "lowrank", "rank": 2}}'
    assert bonsai("train", *flags, "--name", "x", "--model.structure", given, "--train.steps", 1) == 0
    assert "transformer.h.0.mlp.c_fc.weight.U" in RunDirectory.open(Path("runs/x")).load().model
