"""Source `files`: every form of text file, as a stream, in parts, from any place; and what it refuses."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsaigpt.config import FilesData, TextData
from bonsaigpt.data.corpora import document as documents_of
from bonsaigpt.data.corpora import open_text
from bonsaigpt.data.corpora.document import PART, in_parts
from bonsaigpt.data.corpora.source import Cursor, Document
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.prepare import prepare
from bonsaigpt.data.tokenizers import BpeTokenizer
from bonsaigpt.errors import ConfigError, DataError

TEXTS = ["first text", "druhý text\nna dvou řádcích", "第三", 'with "quotes" and \\ and \U0001f333']
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def texts(config: TextData, start: Cursor = Cursor()) -> list[str]:  # noqa: B008
    """What comes out, cleaned."""
    source = open_text(config, hashes=FileHashes())
    cleaned = [source.clean(document) for document, _ in source.stream(start)]
    return [document.text for document in cleaned if document is not None]


def json_lines(items: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(items)).encode()


# ------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("form", [".txt", ".md", ".py", ".jsonl", ".json"])
def test_every_form_and_compression_is_read(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"a{form}{suffix}"
    is_json = form in (".jsonl", ".json")
    path.write_bytes(COMPRESS[suffix](json_lines(TEXTS) if is_json else "\n".join(TEXTS).encode()))
    assert texts(FilesData(path=path)) == (TEXTS if is_json else ["\n".join(TEXTS)])


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    many = [f"{text} {i}" for i in range(300) for text in TEXTS]
    column = pa.array([*many, None, ""])
    parquet.write_table(
        pa.table({"id": range(len(many) + 2), "body": column}), tmp_path / "a.parquet", row_group_size=7
    )
    assert texts(FilesData(path=tmp_path / "a.parquet", field="body")) == many
    encoded = pa.table({"text": column.dictionary_encode()})
    parquet.write_table(encoded, tmp_path / "b.parquet")
    assert texts(FilesData(path=tmp_path / "b.parquet")) == many


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_several_compressed_streams_in_one_file_are_one_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    pieces = [np.random.default_rng(i).bytes(200_000).hex() for i in range(3)]
    path.write_bytes(b"".join(COMPRESS[suffix](piece.encode()) for piece in pieces) + b"\0" * 512)
    assert texts(FilesData(path=path)) == ["".join(pieces)]


def test_documents_by_line_and_by_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo \n\n \nthree\nfour".encode())
    assert texts(FilesData(path=path, by="line")) == ["one", "two ", "three", "four"]
    assert texts(FilesData(path=path, by="paragraph")) == ["one\ntwo ", "three\nfour"]
    assert texts(FilesData(path=path, by="file")) == ["one\r\ntwo \n\n \nthree\nfour"]  # the BOM is gone, nothing else
    path.write_bytes(json_lines(TEXTS))
    assert texts(FilesData(path=path, by="field")) == TEXTS


def test_a_folder_takes_several_patterns_and_a_glob_needs_none(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "deep/c.txt", "d.jsonl", "empty.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"" if name == "empty.txt" else json_lines([name]))
    assert len(texts(FilesData(path=tmp_path))) == 2
    assert len(texts(FilesData(path=tmp_path, pattern="**/*.txt, *.md,*.jsonl"))) == 4
    assert texts(FilesData(path=tmp_path / "*.jsonl")) == ["d.jsonl"]
    assert len(texts(FilesData(path=tmp_path / "**" / "*.txt"))) == 2


def test_standard_input_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("čaj\nkáva\n".encode())))
    assert texts(FilesData(path=Path("-"))) == ["čaj\nkáva\n"]
    assert texts(FilesData(path=Path("-"), by="line")) == ["čaj", "káva"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input is empty"):
        texts(FilesData(path=Path("-")))


def test_half_a_surrogate_pair_in_json_becomes_a_replacement(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800b \\ud83c\\udf33"}\n')
    assert texts(FilesData(path=tmp_path / "a.jsonl")) == ["a\ufffdb \U0001f333"]


# ------------------------------------------------------------------------------------------------ long documents


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of 50 characters, read in blocks of 13 bytes."""
    monkeypatch.setattr(documents_of, "PART", 50)
    monkeypatch.setattr(documents_of, "_BLOCK", 13)
    monkeypatch.setattr(documents_of, "_NEAR", 20)
    return 50


@given(st.text(st.sampled_from("ab \n\t\r0é漢🌳"), max_size=400))
@settings(max_examples=60, deadline=None)
def test_parts_are_short_and_give_the_text_again(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_of, "PART", 50)
        patch.setattr(documents_of, "_BLOCK", 13)
        path = tmp_path_factory.mktemp("parts") / "a.txt.gz"
        path.write_bytes(gzip.compress(text.encode()))
        from_file = [document for document, _ in open_text(FilesData(path=path), hashes=FileHashes()).stream(Cursor())]
        parts = list(in_parts("a.txt.gz", text))
    assert from_file == parts
    assert "".join(p.text for p in parts) == text
    assert [p.start for p in parts] == list(itertools.accumulate([0, *(len(p.text) for p in parts)]))[:-1]
    assert all(len(p.text) <= 50 for p in parts)
    assert all(p.total == (len(text) if len(text) > 50 else None) for p in parts)


def test_parts_end_where_no_token_is_cut(short_parts: int) -> None:
    words = "the bonsai grows\n\nslowly it is\nso pruned  not hurried " * 9
    parts = list(in_parts("x", words))
    tokenizer = BpeTokenizer.train([words], 300)
    whole = tokenizer.encode(words).tolist()
    assert [i for part in parts for i in tokenizer.encode(part.text).tolist()] == whole
    hard = [words[i : i + short_parts] for i in range(0, len(words), short_parts)]  # what the care is for
    assert [i for part in hard for i in tokenizer.encode(part).tolist()] != whole


def test_a_part_ends_at_a_line_break_if_there_is_one_else_at_a_space_else_anywhere(short_parts: int) -> None:
    def first(text: str) -> str:
        return next(in_parts("x", text)).text

    assert first("a\n" + "b" * 30 + " " + "c" * 60) == "a\n"
    assert first("a\n\n" + "b" * 30 + " " + "c" * 60) == "a\n\n" + "b" * 30
    assert first("b" * 60) == "b" * 50
    assert first("a" * 49 + "\n" + "b" * 9) == "a" * 49 + "\n"


def test_a_long_file_is_one_document_in_parts(tmp_path: Path) -> None:
    text = "0123456789 bonsai\n" * (3 * PART // 18 - 9)
    (tmp_path / "a.txt").write_text(text)
    found = [d for d, _ in open_text(FilesData(path=tmp_path / "a.txt"), hashes=FileHashes()).stream(Cursor())]
    assert len(found) == 3
    assert {d.total for d in found} == {len(text)}
    assert "".join(d.text for d in found) == text


# -------------------------------------------------------------------------------------------------- going on


def many_files(folder: Path) -> FilesData:
    for i in range(4):
        (folder / f"{i}.jsonl.gz").write_bytes(
            gzip.compress(json_lines([f"{i} {j} " + "x" * 60 * j for j in range(6)]))
        )
    return FilesData(path=folder, pattern="*.gz")


def test_a_stream_goes_on_from_any_place(tmp_path: Path, short_parts: int) -> None:
    source = open_text(many_files(tmp_path), hashes=FileHashes())
    everything = list(source.stream(Cursor()))
    assert len(everything) > 24
    for i, (_, cursor) in enumerate(everything):
        assert list(source.stream(cursor)) == everything[i + 1 :]
    cursors = [cursor for _, cursor in everything]
    assert cursors == sorted(set(cursors))
    assert everything[-1][1].read == source.size
    wrong = Cursor(cursors[3].file, cursors[3].item + 1)  # negative control
    assert next(iter(source.stream(wrong))) != everything[4]


def test_a_limit_stops_between_documents_wherever_the_stream_began(tmp_path: Path) -> None:
    config = many_files(tmp_path)
    size = open_text(config, hashes=FileHashes()).size
    assert size is not None
    limited = open_text(config.model_copy(update={"limit_mb": size * 0.6 / 1e6}), hashes=FileHashes())
    found = list(limited.stream(Cursor()))
    assert len(found) == 13  # a small file is read at once, so more than 0.6 is read with the third's first
    assert limited.size == int(size * 0.6)
    assert list(limited.stream(found[9][1])) == found[10:]
    assert list(limited.stream(found[-1][1])) == []


# -------------------------------------------------------------------------------------------------- identity


def test_identity_is_of_content_and_settings_not_of_paths_and_times(tmp_path: Path) -> None:
    def identity(**settings: object) -> str:
        return open_text(FilesData.model_validate({"path": path, **settings}), hashes=FileHashes()).identity

    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    first = identity()
    path = path.rename(tmp_path / "b.md")
    assert identity() == first
    others = [identity(by="line"), identity(normalize=True), identity(limit_mb=1), identity(by="field")]
    path.write_text("one\ntwO\n")
    assert len({first, *others, identity()}) == 6


def test_normalized_text_is_nfc_with_line_feeds_and_no_trailing_spaces(tmp_path: Path) -> None:
    raw = "cafe\u0301  \r\nA\u0300\rx\t \n"
    (tmp_path / "a.txt").write_bytes(raw.encode())
    assert texts(FilesData(path=tmp_path / "a.txt")) == [raw]
    assert texts(FilesData(path=tmp_path / "a.txt", normalize=True)) == ["café\nÀ\nx\n"]
    assert unicodedata.is_normalized("NFC", "café\nÀ")


# ---------------------------------------------------------------------------------------------------- refusals


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) * 2 // 3]


NOISE = np.random.default_rng(0).bytes(300_000).hex().encode()
DAMAGED = bz2.compress(NOISE).replace(bz2.compress(NOISE)[1000:1009], b"x" * 9)
PARQUET = io.BytesIO()
parquet.write_table(pa.table({"id": [1], "body": ["x"]}), PARQUET)

REFUSED = {
    "invalid UTF-8": ("a.txt", b"good\n" * 300_000 + b"caf\xe9\n", {}, r"a\.txt is not UTF-8 \(byte 1500003\).*iconv"),
    "invalid UTF-8 at the end": ("a.txt", "é".encode()[:1], {}, r"a\.txt is not UTF-8 \(byte 0\)"),
    "invalid UTF-8 behind a BOM": ("a.txt", b"\xef\xbb\xbfab\xff", {}, r"a\.txt is not UTF-8 \(byte 5\)"),
    "invalid UTF-8 in a line behind a BOM": (
        "a.txt",
        b"\xef\xbb\xbfab\xff\n",
        {"by": "line"},
        r"not UTF-8 \(line 1, byte 5\)",
    ),
    "invalid UTF-8 in a line": ("a.txt", b"a\nb\n\xff\n", {"by": "line"}, r"not UTF-8 \(line 3, byte 4\)"),
    "invalid UTF-8 in gzip": ("a.txt.gz", gzip.compress(b"abc\xff"), {}, r"a\.txt\.gz is not UTF-8 \(byte 3\)"),
    "binary": ("a.txt", b"\x7fELF\0\0", {}, "a.txt is a binary file"),
    "binary lines": ("a.txt", b"\x7fELF\0\0", {"by": "line"}, "a.txt is a binary file"),
    "empty": ("a.txt", b"", {}, "a.txt is empty"),
    "gzip cut short": ("a.txt.gz", cut(gzip.compress(NOISE)), {}, r"a\.txt\.gz is cut short: at byte \d{6}"),
    "bzip2 cut short": ("a.txt.bz2", cut(bz2.compress(NOISE)), {}, r"a\.txt\.bz2 is cut short: at byte \d{6}"),
    "xz cut short": ("a.txt.xz", cut(lzma.compress(NOISE)), {}, r"a\.txt\.xz is cut short: at byte \d{6}"),
    "zstandard cut short": (
        "a.jsonl.zst",
        cut(COMPRESS[".zst"](json_lines([NOISE.decode()[i : i + 99] for i in range(0, 600_000, 99)]))),
        {},
        r"a\.jsonl\.zst is cut short: at byte \d{6}",
    ),
    "gzip that is none": ("a.txt.gz", b"plain text", {}, r"a\.txt\.gz is damaged, or is no \.gz file.*byte 0"),
    "damaged bzip2": (
        "a.txt.bz2",
        DAMAGED,
        {},
        "is damaged.*near byte",
    ),
    "a line that is no JSON": (
        "a.jsonl",
        json_lines(["x"]) + b"{oops}\n",
        {},
        r"a\.jsonl, line 2 \(byte 23\) is no",
    ),
    "a line that is a list": ("a.jsonl", b"[1]\n", {}, r"line 1 \(byte 0\) is a JSON list"),
    "a line without the field": (
        "a.jsonl",
        b'{"body": "x"}\n',
        {},
        "line 1 .*no field 'text', only body: set",
    ),
    "a field that is no text": ("a.jsonl", b'{"text": 3}\n', {}, "'text' is a int, no text"),
    "parquet without the field": (
        "a.parquet",
        PARQUET.getvalue(),
        {},
        r"parquet has no field 'text', only id, body",
    ),
    "parquet whose field is no text": ("a.parquet", PARQUET.getvalue(), {"field": "id"}, "of type int64, no text"),
    "parquet cut short": ("a.parquet", PARQUET.getvalue()[:-50], {}, r"a\.parquet cannot be read as parquet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    file, raw, given, words = REFUSED[name]
    (tmp_path / file).write_bytes(raw)
    with pytest.raises(DataError, match=words):
        texts(FilesData.model_validate({"path": tmp_path / file, **given}))


@pytest.mark.parametrize("by", ["line", "paragraph", "field"])
def test_one_enormous_line_is_refused(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_of, "LINE_LIMIT", 1 << 20)
    (tmp_path / "a.txt").write_bytes(b"first\n" + b"x" * (1 << 20) + b"y\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2 \(byte 6\) is longer than 1 MiB|line 1 .*no JSON"):
        texts(FilesData.model_validate({"path": tmp_path / "a.txt", "by": by}))
    (tmp_path / "a.txt").write_bytes(b"word\n" * 220_000)
    if by == "paragraph":
        with pytest.raises(DataError, match="no blank line from line 1"):
            texts(FilesData(path=tmp_path / "a.txt", by="paragraph"))


def test_a_folder_without_matches_suggests_the_pattern_that_would_match(tmp_path: Path) -> None:
    for name in ("a.jsonl.zst", "b.jsonl.zst", "c.md"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"set --data.pattern, e\.g\. '\*\*/\*\.jsonl\.zst'"):
        texts(FilesData(path=tmp_path))
    with pytest.raises(DataError, match="no file matches"):
        texts(FilesData(path=tmp_path / "*.csv"))
    with pytest.raises(DataError, match="does not exist"):
        texts(FilesData(path=tmp_path / "nowhere" / "*.txt"))
    (tmp_path / "a.parquet").write_bytes(PARQUET.getvalue())
    with pytest.raises(ConfigError, match="parquet has fields"):
        texts(FilesData(path=tmp_path / "a.parquet", by="line"))


def test_documents_are_named_for_messages(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x", "y"]))
    source = open_text(FilesData(path=tmp_path, pattern="*"), hashes=FileHashes())
    assert [d for d, _ in source.stream(Cursor())] == [
        Document("a.jsonl, line 1", "x"),
        Document("a.jsonl, line 2", "y"),
    ]


def test_files_that_are_left_out_are_told_when_they_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "mix"
    for name in ("a.txt", "b.md", "c.md", "deep/d.jsonl.gz", "e.csv", "f.rst", "g.html", "h", ".git/i.md", "empty.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if name == "empty.md" else "some text " * 9)
    said: list[str] = []
    config = FilesData.model_validate({"path": folder, "tokenizer": {"kind": "bytes"}})
    prepare(config, tmp_path / "c", say=said.append)
    assert said[0] == (
        f"{folder}: 7 other files (.md 2, without a suffix 1, .csv 1, .html 1, 2 more kinds) do not match '**/*.txt'; "
        "--data.pattern takes more"
    )
    prepare(config, tmp_path / "c", say=said.append)
    assert len([line for line in said if "other files" in line]) == 1  # nothing was read again
    everything = config.model_copy(update={"pattern": "**/*.[trch]*, **/*.md, **/h, **/*.gz"})
    assert open_text(everything, hashes=FileHashes()).note() == ""
    assert open_text(FilesData(path=folder / "*.txt"), hashes=FileHashes()).note() == ""
