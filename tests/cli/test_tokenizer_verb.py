"""`bonsai tokenizer`: train, show, report, and what each refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.cli.tokenizer_show import visible
from bonsaigpt.data.tokenizers import BpeTokenizer, open_tokenizer
from bonsaigpt.data.tokenizers.reading import text_parts
from bonsaigpt.errors import DataError


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a text and a folder of two texts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("žluťoučký kůň " * 200, encoding="utf-8")
    (tmp_path / "texts" / "b.txt").write_text("the cat sat on a mat\n" * 200)
    (tmp_path / "texts" / "c.md").write_text("# head\n" * 50)
    return tmp_path


def bonsai(*words: object) -> int:
    return main([str(w) for w in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a refusal prints."""
    assert bonsai("tokenizer", *words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bonsai: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_what_was_trained_can_be_trained_with(
    tiny_flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)  # slow, and tested elsewhere
    assert (
        bonsai("tokenizer", "train", "text.txt", "texts", "--vocab", 300, "--split", "gpt4", "--special", "<|user|>")
        == 0
    )
    assert "tokenizer.json: 300 tokens from 0.0 MB in 3 files" in capsys.readouterr().out
    tokenizer = open_tokenizer("tokenizer.json")
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|user|>": 1}
    given = ["--data.tokenizer.kind", "file", "--data.tokenizer.path", "tokenizer.json", "--train.steps", 2]
    assert bonsai("train", "my-text", "--name", "a", "--data.path", "text.txt", *tiny_flags, *given) == 0
    capsys.readouterr()
    assert open_tokenizer("runs/a").to_json() == tokenizer.to_json()
    [corpus] = [p for p in Path("corpora").iterdir() if not p.name.startswith(".")]
    for address in ("runs/a", "a", corpus, "tokenizer.json", Path("runs/a/tokenizer.json")):
        assert bonsai("tokenizer", "show", "the cat", "--tokenizer", address) == 0
        assert "the" in capsys.readouterr().out


def test_training_is_the_same_again_and_learns_from_the_first_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", "b.json"):
        assert bonsai("tokenizer", "train", "texts", "--vocab", 280, "-o", name) == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert bonsai("tokenizer", "train", "texts", "--vocab", 280, "--megabytes", 0.002, "-o", "c.json") == 0
    assert "the first 0.0 of 0.0 MB" in capsys.readouterr().out
    assert b" mat" not in b"".join(open_tokenizer("c.json").pieces())
    assert bonsai("tokenizer", "train", "texts", "--vocab", 5000, "--megabytes", 0, "-o", "d.json") == 0
    assert "the text has no more merges" in capsys.readouterr().out


def test_show_separates_pieces_and_makes_controls_visible(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.json").write_text(BpeTokenizer.train(["the cat sat on the mat " * 30], 280).to_json())
    assert bonsai("tokenizer", "show", "the cat\tsat\n\x07世", "--tokenizer", "t.json", "--no-color") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the│ cat│⇥│sat│↵"
    assert lines[1] == "│<U+0007>│<E4>│<B8>│<96>"
    ids = [int(word) for word in lines[2].split()]
    assert ids == open_tokenizer("t.json").encode("the cat\tsat\n\x07世").tolist()
    assert lines[3] == f"{len(ids)} tokens, 16 bytes, {16 / len(ids):.2f} bytes a token"


def test_show_draws_in_colours_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert bonsai("tokenizer", "show", "ab", "--no-ids") == 0
    out = capsys.readouterr().out
    assert out.count("\x1b[") >= 4
    assert "│" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert bonsai("tokenizer", "show", "ab") == 0
    assert "a│b" in capsys.readouterr().out


def test_show_reads_files_and_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bonsai("tokenizer", "show", "--file", "texts/c.md") == 0
    assert "350 tokens, 350 bytes" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é".encode())))
    assert bonsai("tokenizer", "show", "-") == 0
    assert "<C3>│<A9>" in capsys.readouterr().out
    assert bonsai("tokenizer", "show", "") == 0
    assert "0 tokens, 0 bytes" in capsys.readouterr().out


def test_visible() -> None:
    assert visible(b" word") == " word"
    assert visible("\u00a0\u200b".encode()) == "<U+00A0><U+200B>"
    assert visible(b"a\xff") == "a<FF>"


def test_report_compares(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.json").write_text(BpeTokenizer.train(["the cat sat on a mat\n" * 30], 280).to_json())
    assert bonsai("tokenizer", "report", "texts", "--tokenizer", "t.json", "--tokenizer", "bytes") == 0
    out = capsys.readouterr().out
    for words in ("bytes a token", "texts/b.txt", "all", "257", "MB/s", "' mat"):
        assert words in out
    assert bonsai("tokenizer", "report", "texts", "--tokenizer", "t.json", "--tokenizer", "bytes", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["files"]) == ["texts/a.txt", "texts/b.txt"]
    ours, plain = figures["tokenizers"]
    text = Path("texts/b.txt").read_text()
    assert ours["bytes_per_token_of_files"]["texts/b.txt"] == len(text) / len(open_tokenizer("t.json").encode(text))
    assert plain["bytes_per_token"] == 1.0
    assert plain["tokens"] == sum(figures["files"].values())
    used = {*Path("texts/a.txt").read_bytes(), *Path("texts/b.txt").read_bytes()}
    assert plain["used_share"] == len(used) / 257


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train nowhere.txt", ["nowhere.txt does not exist"]),
        ("train texts --pattern *.rst", ["no file below texts matches '*.rst'", "--pattern"]),
        ("train text.txt --vocab 256", ["--vocab 256", "need 257"]),
        ("train text.txt --vocab 257 --special <|a|>", ["--vocab 257", "need 258"]),
        ("train text.txt --vocab 300 --special the", ["'the' could also be learned", "<|the|>"]),
        ("train text.txt --megabytes -1", ["--megabytes", "0 (all) or more"]),
        ("train text.txt --megabytes nan", ["--megabytes", "0 (all) or more"]),
        ("train text.txt -o texts", ["texts is no file", "-o"]),
        ("train text.txt -o nowhere/t.json", ["nowhere/t.json", "-o"]),
        ("train text.txt -o text.txt", ["text.txt exists already", "--force"]),
        ("train empty.txt", ["no text"]),
        ("train binary.txt", ["binary.txt is a binary file"]),
        ("train latin.txt", ["latin.txt is not UTF-8 (byte 3)", "iconv"]),
        ("train text.txt --split gpt3", ["--split", "gpt4"]),
        ("show", ["give a text", "--file"]),
        ("show x --file text.txt", ["one of the two"]),
        ("show x --tokenizer nowhere", ["no tokenizer at nowhere", "tokenizer.json"]),
        ("show x --tokenizer texts", ["texts has neither tokenizer.json"]),
        ("show x --tokenizer text.txt", ["text.txt", "damaged"]),
        ("report text.txt", ["--tokenizer"]),
        ("report texts/a.txt --tokenizer chars.json", ["texts/a.txt cannot be encoded with chars.json", "'ž'"]),
        ("report text.txt --tokenizer bytes --longest -1", ["--longest"]),
        ("shw", ["train, show, report"]),
    ],
)  # fmt: skip
def test_refusals_are_one_line_and_leave_nothing(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str], workshop: Path
) -> None:
    (workshop / "empty.txt").write_bytes(b"")
    (workshop / "binary.txt").write_bytes(b"\x7fELF\0\0")
    (workshop / "latin.txt").write_bytes(b"caf\xe9")
    (workshop / "chars.json").write_text('{"kind": "chars", "characters": "abc"}')
    before = sorted(workshop.rglob("*"))
    message = refused(capsys, *command.split())
    for word in words:
        assert word in message.replace("'train', 'show', 'report'", "train, show, report"), message
    assert sorted(workshop.rglob("*")) == before


def test_files_are_read_in_parts_that_lose_nothing(workshop: Path) -> None:
    text = "žluťoučký\nkůň 世界🌱 " * 120_000  # 3.6 MB: some characters lie across the blocks
    path = workshop / "long.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    parts = list(text_parts(path))
    assert len(parts) > 2
    assert "".join(parts) == text
    raw = bytearray(text.encode())
    raw[2_500_001] = 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"long.txt is not UTF-8 \(byte 2,500,00[01]\)"):
        list(text_parts(path))
