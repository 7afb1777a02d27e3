"""`bonsai tokenizer`: train, show, report, and what each refuses."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.cli.tokenizer_show import visible
from bonsaigpt.data.tokenizers import BpeTokenizer, open_tokenizer


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
        ("train empty.txt", ["empty.txt is empty"]),
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


@pytest.mark.parametrize("by", [[], ["--by", "line"], ["--by", "paragraph"]])
def test_texts_are_read_as_prepare_reads_them(
    by: list[str], workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documents of a mixed folder, whatever their form, and nothing of their markup."""
    mixed = workshop / "mixed"
    mixed.mkdir()
    lines = "".join(json.dumps({"id": i, "body": f"the cat {i}\n\nsat"}) + "\n" for i in range(50))
    (mixed / "a.jsonl").write_text(lines)
    (mixed / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (mixed / "c.md").write_text("a mat\n\n" * 50)
    pattern = "**/*.md" if by else "**/*.jsonl, **/*.jsonl.gz,**/*.md"
    how = ["--pattern", pattern, "--field", "body", *by]
    assert bonsai("tokenizer", "train", "mixed", *how, "--vocab", 270, "-o", "t.json") == 0
    assert not [piece for piece in open_tokenizer("t.json").pieces() if b"{" in piece and len(piece) > 1]
    capsys.readouterr()
    assert bonsai("tokenizer", "report", "mixed", *how, "--tokenizer", "bytes", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    words = [f"--data.{how[0][2:]}", pattern, "--data.field", "body", *(w.replace("--", "--data.") for w in by)]
    assert bonsai("prepare", "files", "--data.path", "mixed", *words, "--data.tokenizer.kind", "bytes") == 0
    [described] = Path("corpora").glob("files-*/corpus.json")
    told = json.loads(described.read_text())["counts"]
    assert sum(found["files"].values()) == sum(counts["bytes"] for counts in told.values())


def test_texts_that_cannot_be_read_are_told_with_these_verbs_flags(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workshop / "a.jsonl").write_text('{"body": "x"}\n')
    error = refused(capsys, "train", "a.jsonl")
    assert "no field 'text', only body: set --field" in error
    (workshop / "b.txt").write_bytes("\ufeffab".encode() + b"\xff")
    assert "b.txt is not UTF-8 (byte 5)" in refused(capsys, "train", "b.txt")
    assert "b.txt is not UTF-8 (line 1, byte 5)" in refused(capsys, "train", "b.txt", "--by", "line")


def test_files_that_a_pattern_leaves_out_are_named(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bonsai("tokenizer", "train", "texts", "--vocab", 270) == 0
    assert "texts: 1 other file (.md 1) does not match '**/*.txt'; --pattern takes more" in capsys.readouterr().out
