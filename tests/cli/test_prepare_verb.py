"""`bonsai prepare`: mixtures, runs, names that are none, and help that offers what can be prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from bonsaigpt.cli import main

MIXTURE = """
[data]
kind = "mixture"

[[data.parts]]
weight = 3
[data.parts.data]
kind = "files"
path = "one.txt"
tokenizer = {kind = "bytes"}

[[data.parts]]
weight = 1
[data.parts.data]
kind = "files"
path = "two.txt"
tokenizer = {kind = "bytes"}
"""


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two texts and a mixture of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BONSAI_CORPORA", raising=False)
    (tmp_path / "one.txt").write_text("the cat sat on a mat\n" * 30)
    (tmp_path / "two.txt").write_text("a bonsai is pruned, not hurried\n" * 30)
    (tmp_path / "mixt.toml").write_text(MIXTURE)
    return tmp_path


def test_a_mixture_is_prepared_part_by_part(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "mixt.toml"]) == 0
    assert capsys.readouterr().out.count("hashes checked") == 2
    assert len(list(workshop.glob("corpora/files-*/corpus.json"))) == 2
    assert main(["prepare", "mixt.toml", "--download"]) == 2
    assert "needs no network" in capsys.readouterr().err


def test_a_run_means_its_data(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the message about a run without its corpus says."""
    (workshop / "runs/a").mkdir(parents=True)
    (workshop / "runs/a/config.toml").write_text(MIXTURE)
    assert main(["prepare", "runs/a"]) == 0
    assert capsys.readouterr().out.count("hashes checked") == 2


@pytest.mark.parametrize(
    ("source", "words"),
    [("nix", ["'nix'", "Sources are files, wikipedia", "bonsai recipes"]), ("wikipdia", ["Did you mean 'wikipedia'?"])],
)
def test_what_is_no_source_names_those_that_are(
    source: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", source]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in words), error


def test_help_offers_what_can_be_prepared_and_tells_each_meaning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for words in ("data.digits", "data.queries", ",sort,", "{add", "in a recipe one [] each"):
        assert words not in out
    assert "mixture" in out
    assert "gpt2: Folder with encoder.json" in out
    assert "file: A tokenizer.json, or the folder of a run, a corpus or a model" in out
