"""The study of the cache over answers of a task."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import Any

import pytest

from bonsaigpt import recipes
from bonsaigpt.cli import main
from bonsaigpt.config import derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.measure.kv_answers import KVAnswers
from bonsaigpt.study.kv_answers import KVAnswersStudy, answers_table, chance, write_answers
from bonsaigpt.watch.studies import read_study, studies_of


def answers(bits: float, exact: float, margin: float = 0.001) -> KVAnswers:
    return KVAnswers(exact=exact, right=exact, exact_lost=1 - exact, margin=margin, loss=1 - exact, bits=bits,
                     factor=160 / bits, problems=50)  # fmt: skip


def test_the_fewest_bits_without_loss_are_named(tmp_path: Path) -> None:
    found = [answers(80.0, 1.0), answers(20.0, 0.995), answers(10.0, 0.995, margin=0.1), answers(25.0, 0.3)]
    policies = ["full, int8", "full, int2", "full, sign", "window(4)"]
    study = KVAnswersStudy(label="runs/a task@9", chance=0.25, policies=policies, answers=found)
    assert "8.0 times fewer bits, with full, int2." in study.verdict  # of sign nobody knows
    assert "25.0% are right by chance" in study.verdict
    _, rows = answers_table(study)
    assert [(row[0], row[-1]) for row in rows] == [
        ("full, int8", "*"),
        ("window(4)", ""),
        ("full, int2", ""),
        ("full, sign", "*"),
    ]
    page, image, table = write_answers(study, tmp_path)
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "<script" not in page.read_text(encoding="utf-8")
    lines = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [line["frontier"] for line in lines] == ["1", "0", "1", "0"]
    assert shlex.split(lines[3]["command"]) == ["bonsai", "eval", "runs/a task", "--kv", "window(4)"]
    nothing = KVAnswersStudy(label="x", chance=0.25, policies=["sign"], answers=[answers(10.0, 0.5)])
    assert "times fewer" not in nothing.verdict


def test_a_task_s_run_is_studied_by_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    places = ["--runs", str(tmp_path), "--corpora", str(tmp_path / "corpora")]
    size: dict[str, Any] = {"pairs": 2, "gap": 6, "queries": 2, "keys": 4, "values": 4, "val_examples": 40}
    flags = [word for name, value in size.items() for word in (f"--data.{name}", str(value))]
    flags += ["--model.n_embd", "32", "--model.block_size", "13", "--train.steps", "2", "--train.compile", "off"]
    flags += ["--train.precision", "fp32", "--train.tensorboard", "false", "--train.workers", "1"]
    assert main(["train", "recall", "--name", "lookup", *flags, *places]) == 0
    asked = ["--policy", "full, int4", "--policy", "window(4), bf16"]
    assert main(["study", "kv", "lookup", *asked, *places, "--threads", "1"]) == 0
    told = capsys.readouterr().out
    assert "40 problems" in told
    assert (tmp_path / "lookup" / "studies" / "kv.csv").read_text().count("\n") == 3
    drawn = read_study(tmp_path / "lookup", "kv-answers")  # by `bonsai watch`
    assert drawn is not None
    assert [point["name"] for point in drawn["points"]] == ["full, int4, chunk=1", "window(4), bf16, chunk=1"]
    assert drawn["y_unit"] == "of the problems"
    assert read_study(tmp_path / "lookup", "kv") is None
    assert [study["study"] for study in studies_of(tmp_path / "lookup")] == ["kv-answers"]
    source = open_source(derive(recipes.load("recall"), data=size, model={"block_size": 13}), tmp_path / "corpora")
    assert 1 / 4 <= chance(source) < 0.5  # four values, alike but for the draw
    assert main(["study", "kv", "lookup", "--max-loss", "0.1", *places]) == 2
    assert "--max-loss are of text; leave them out" in capsys.readouterr().err
