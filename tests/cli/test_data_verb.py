"""`bonsai data`: by folder, by name, by run; damage is named."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bonsaigpt.cli import main


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """A folder with a trained run and its corpus, and another corpus."""
    monkeypatch.chdir(tmp_path)
    for name in ("BONSAI_RUNS", "BONSAI_CORPORA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    path = ["--data.kind", "files", "--data.path", str(tiny_text)]
    assert main(["train", "zero-one", *path, *tiny_flags, "--train.steps", "1", "--name", "run"]) == 0
    assert main(["prepare", "files", *path[2:], "--data.tokenizer.kind", "bytes"]) == 0
    return tmp_path


def folders(root: Path) -> dict[str, Path]:
    """Of both corpora, by tokenizer."""
    found = sorted((root / "corpora").glob("files-*"))
    return {"bytes" if '"bytes"' in (f / "tokenizer.json").read_text() else "chars": f for f in found}


def call(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(shlex.split(command))
    out, error = capsys.readouterr()
    return code, out, error


def test_a_corpus_is_found_by_folder_by_name_and_by_run(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpora = folders(workshop)
    for place, which in (
        (f"corpora/{corpora['bytes'].name}", "bytes"),
        (corpora["bytes"].name, "bytes"),
        ("runs/run", "chars"),
        ("run", "chars"),
    ):
        code, out, _ = call(f"data verify {place}", capsys)
        assert code == 0
        assert corpora[which].name in out
        assert "2 shards" in out
    code, _, error = call("data verify nothing", capsys)
    assert code == 2
    assert "nothing is neither a corpus" in error
    assert "bonsai prepare" in error


def test_a_run_without_its_corpus_says_how_to_get_it(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in folders(workshop)["chars"].iterdir():
        file.unlink()
    code, _, error = call("data show run", capsys)
    assert code == 2
    assert "bonsai prepare runs/run" in error


def test_verify_names_every_damaged_shard_and_goes_on(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpora = folders(workshop)
    shard = corpora["chars"] / "val-000000.bin"
    raw = bytearray(shard.read_bytes())
    raw[3] ^= 1
    shard.write_bytes(raw)
    code, out, error = call(f"data verify {corpora['chars']} {corpora['bytes']}", capsys)
    assert code == 2
    assert corpora["bytes"].name in out
    assert f"{corpora['chars'].name}/val-000000.bin was changed" in error
    assert "backup" in error
    assert len(error.splitlines()) == 1


def test_show_decodes_windows_of_a_split(workshop: Path, tiny_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("data show run --split val --count 2 --length 40", capsys)
    assert code == 0
    assert out.count("val, tokens") == 2
    windows = [part.split("\n", 1)[1].strip("\n") for part in out.split(f"{folders(workshop)['chars'].name}, ")[1:]]
    text = tiny_text.read_text()
    assert all(window.strip() and window.strip() in text for window in windows)
    assert out == call("data show run --split val --count 2 --length 40", capsys)[1]
    assert out != call("data show run --split val --count 2 --length 40 --seed 1", capsys)[1]


@pytest.mark.parametrize("which", ["bytes", "chars"])
def test_stats_counts_and_draws(which: str, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders(workshop)[which]
    code, out, _ = call(f"data stats {folder}", capsys)
    assert code == 0
    assert "vocabulary used" in out
    page = (folder / "stats.html").read_text()
    assert page.count("<svg") == (2 if which == "bytes" else 1)  # characters do not say where a document ends
    assert "<script" not in page
    assert (folder / "stats.png").read_bytes().startswith(b"\x89PNG")
    assert call(f"data verify {folder}", capsys)[0] == 0


def test_verify_reads_the_tokenizer_and_the_indexes_and_goes_on(
    workshop: Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = folders(workshop)
    packed = ["--data.kind", "corpus", "--data.path", str(corpora["bytes"]), "--data.order", "packed"]
    assert main(["train", "zero-one", *packed, *tiny_flags, "--train.steps", "1", "--name", "packed"]) == 0
    assert call(f"data verify {corpora['bytes']}", capsys)[0] == 0
    [pieces] = corpora["bytes"].glob("*.pieces.index")
    whole = pieces.read_bytes()
    raw = bytearray(whole)
    raw[8] ^= 1
    pieces.write_bytes(raw)
    tokenizer = corpora["chars"] / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace(" ", "", 1))
    code, _, error = call(f"data verify {corpora['chars']} {corpora['bytes']}", capsys)
    assert code == 2
    assert "tokenizer.json was changed" in error
    assert f"{pieces.name} is not what was written" in error
    again = ["train", "zero-one", *packed, *tiny_flags, "--train.steps", "1", "--name", "again"]
    assert main(again) == 0
    assert pieces.read_bytes() == whole


@pytest.mark.parametrize("flag", ["--length", "--count"])
def test_no_windows_and_empty_ones_are_refused(flag: str, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = call(f"data show run {flag} 0", capsys)
    assert code == 2
    assert "use 1 or more" in error


def test_stats_of_a_corpus_that_cannot_be_written_go_elsewhere(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders(workshop)["bytes"]
    (folder / "stats.html").mkdir()  # stands for a read-only disk, which does not bind root
    code, out, _ = call(f"data stats {folder}", capsys)
    assert code == 0
    assert f"{folder.name}.stats.html and {folder.name}.stats.png" in out
    (workshop / "pages").mkdir()
    assert call(f"data stats {folder} -o pages", capsys)[0] == 0
    assert sorted(p.name for p in (workshop / "pages").iterdir()) == [
        f"{folder.name}.stats.html",
        f"{folder.name}.stats.png",
    ]
    code, _, error = call(f"data stats {folder} -o nowhere", capsys)
    assert code == 2
    assert "nowhere" in error


def test_each_action_has_its_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for action, own, others in (
        ("verify", "--corpora", ["--length", "--output"]),
        ("show", "--length", ["--output"]),
        ("stats", "--output", ["--length", "--split"]),
    ):
        with pytest.raises(SystemExit):
            main(["data", action, "--help"])
        out = capsys.readouterr().out
        assert own in out
        assert not [flag for flag in others if flag in out]
