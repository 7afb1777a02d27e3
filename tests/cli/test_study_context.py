"""`bonsai study context` on the command line: what it writes can be made again by its own commands."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pytest

from bonsaigpt.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """A run at 8 tokens, one at 32, and one of another text."""
    folder = tmp_path_factory.mktemp("context")
    other = folder / "other.txt"
    other.write_text(tiny_text.read_text()[::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
        for name, text, more in (
            ("short", tiny_text, []),
            ("long", tiny_text, ["--model.block_size", "32", "--train.batch_size", "1"]),
            ("other", other, []),
        ):
            places = ["--runs", str(folder), "--corpora", str(folder / "corpora"), "--data.path", str(text)]
            flags = ["--name", name, "--model.position.kind", "rope", "--data.tokenizer.kind", "chars"]
            flags += ["--train.steps", "8", "--train.sample_tokens", "0", "--train.attention_kernel", "sdpa"]
            assert main(["train", "my-text", *flags, *places, *tiny_flags, *more]) == 0
    return folder


def bonsai(runs: Path, *words: str) -> int:
    return main([*words, "--runs", str(runs), "--corpora", str(runs / "corpora")])


def test_steps_are_those_of_stretch(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def study(*words: str) -> list[dict[str, str]]:
        flags = ["--lengths", "4,8,32", "--rows", "6", "--out", str(tmp_path), "--threads", "1", "--device", "cpu"]
        assert bonsai(runs, "study", "context", *words, *flags) == 0
        return list(csv.DictReader((tmp_path / "context.csv").read_text(encoding="utf-8").splitlines()))

    rows = study("short", "long", "--steps", "0,3")
    said = capsys.readouterr().out
    assert f"within 0.01 nats of {runs / 'long'}" in said
    short = [row for row in rows if row["run"].endswith("short")]
    assert {row["way"] for row in short} > {"as it is", "linear", "ntk", "yarn", "window(8)", "memory of 32"}
    assert {row["steps"] for row in short} == {"0", "3"}
    assert {row["steps"] for row in rows if row["run"].endswith("long")} == {"0"}
    for row in short:
        assert bool(row["behind"]) == (row["length"] == "32")
    # The command of a point makes a run that reads the same.
    [yarn] = [row for row in short if (row["way"], row["steps"]) == ("yarn", "3")]
    stretch = shlex.split(yarn["command"].partition(" && ")[0])
    assert stretch[:2] == ["bonsai", "stretch"]
    same = ["--train.compile", "off", "--train.attention_kernel", "sdpa"]
    assert bonsai(runs, *stretch[1:], *same) == 0
    made = stretch[stretch.index("--name") + 1]
    again = {row["length"]: row for row in study(made, "--steps", "0", "--fast") if row["way"] == "as it is"}
    assert float(again["32"]["loss"]) == pytest.approx(float(yarn["loss"]), abs=1e-4)
    before = next(row for row in short if (row["way"], row["steps"], row["length"]) == ("yarn", "0", "32"))
    assert abs(float(before["loss"]) - float(yarn["loss"])) > 1e-3  # steps do something
    # And that of a reading reads the same again.
    words = shlex.split(before["command"])
    found = study(*words[3:])
    assert {row["way"] for row in found} == {"as it is", "yarn"}
    assert any(row["loss"] == before["loss"] for row in found)


def test_bad_calls_are_one_sentence(runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, message in [
        (["short", "--lengths", "8,12"], "8 does not divide 12"),
        (["short", "--only", "yarm"], "Did you mean 'yarn'"),
        (["short", "other"], "have other tokens to be scored on"),
        (["short", "--stretch", "24"], "is none of the lengths"),
        (["short", "--steps", "1,x"], "are no steps"),
        (["short", "--lengths", "8,80000"], "pieces of 80,000 are read"),
        (["shrot"], "shrot"),
    ]:
        capsys.readouterr()
        assert bonsai(runs, "study", "context", *words, "--out", str(tmp_path / "out")) == 2
        error = capsys.readouterr().err
        assert message in error, error
    assert not (tmp_path / "out").exists()
