"""Data sets of the hub, and WikiText: read here from folders of the hub's form, and never over the network unasked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from bonsaigpt.cli import main
from bonsaigpt.config import HubData, TextData, TinyStoriesData, WikipediaData, WikitextData
from bonsaigpt.data.corpora import open_text
from bonsaigpt.data.corpora.source import Cursor, Source
from bonsaigpt.data.corpora.wikitext import detokenized
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def texts(config: TextData) -> list[str]:
    source = open_text(config, hashes=FileHashes())
    found = (source.clean(document) for document, _ in source.stream(Cursor()))
    return [document.text for document in found if document is not None]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three parquet files, the second with nulls, and a validation split."""
    folder = tmp_path_factory.mktemp("hub") / "stories"
    folder.mkdir()
    for shard in range(3):
        rows: list[str | None] = [f"story {shard} {row} č" for row in range(5)]
        rows[2] = None if shard == 1 else rows[2]
        table = pa.table({"text": pa.array(rows, pa.string()), "id": list(range(5))})
        parquet.write_table(table, folder / f"train-{shard:05}-of-00003.parquet", row_group_size=2)
    parquet.write_table(pa.table({"text": ["held out"], "id": [0]}), folder / "validation-00000-of-00001.parquet")
    return folder


STORIES = [f"story {shard} {row} č" for shard in range(3) for row in range(5) if (shard, row) != (1, 2)]


def test_a_folder_of_the_hubs_form_needs_no_network_and_no_permission(stories: Path) -> None:
    assert texts(HubData(name=str(stories))) == STORIES
    assert texts(TinyStoriesData(name=str(stories), split_name="validation")) == ["held out"]


def test_json_lines_are_a_data_set_too(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"body": f"b{i}"}) + "\n" for i in range(3)))
    assert texts(HubData(name=str(tmp_path), field="body")) == ["b0", "b1", "b2"]


def test_a_stream_goes_on_in_its_shard(stories: Path) -> None:
    source = open_text(HubData(name=str(stories)), hashes=FileHashes())
    everything = list(source.stream(Cursor()))
    assert [cursor.file for _, cursor in everything] == [0] * 5 + [1] * 4 + [2] * 5
    for i, (_, cursor) in enumerate(everything):
        assert list(source.stream(cursor)) == everything[i + 1 :]
    assert everything[-1][1].read == sum(len(text.encode()) for text in STORIES)
    size = len(STORIES[0].encode())
    limited = open_text(HubData(name=str(stories), limit_mb=(6 * size - 1) / 1e6), hashes=FileHashes())
    assert [document.text for document, _ in limited.stream(Cursor())] == STORIES[:6]
    assert [document.text for document, _ in limited.stream(everything[4][1])] == STORIES[5:6]
    assert limited.size == 6 * size - 1


def test_identity_follows_the_files_and_what_is_read_of_them(stories: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"split_name": "validation"}, {"field": "id"}, {"limit_mb": 1}]
    prints = {open_text(HubData(name=str(stories), **given), hashes=FileHashes()).identity for given in settings}
    assert len(prints) == 4


# ------------------------------------------------------------------------------------------------ the hub itself


@pytest.fixture
def hub(stories: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that gives the stories whatever is asked for, and remembers what was."""
    import datasets
    import huggingface_hub

    asked: list[dict[str, Any]] = []
    load = datasets.load_dataset

    def load_dataset(name: str, config_name: str | None, **given: Any) -> Any:
        asked.append({"name": name, "config_name": config_name, **given})
        return load(str(stories), split=given["split"], streaming=given["streaming"])

    class HfApi:
        def dataset_info(self, name: str, **given: Any) -> Any:
            asked.append({"info": name, **given})
            return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    return asked


def read(source: Source) -> list[str]:
    return [document.text for document, _ in source.stream(Cursor())]


def test_the_hub_is_asked_only_with_permission_and_then_its_commit_is_known(
    hub: list[dict[str, Any]], tmp_path: Path
) -> None:
    memory = tmp_path / "corpora" / ".hashes.json"
    with pytest.raises(DataError, match=r"bonsai prepare tinystories --download.*--data\.kind files"):
        open_text(TinyStoriesData(), hashes=FileHashes(memory))
    assert hub == []
    hashes = FileHashes(memory)
    source = open_text(TinyStoriesData(), hashes=hashes, download=True)
    hashes.save()
    assert read(source) == STORIES
    assert [call.get("info", call.get("name")) for call in hub] == ["roneneldan/TinyStories"] * 2
    assert hub[1]["revision"] == COMMIT
    assert hub[1]["streaming"] is True
    hub.clear()
    again = open_text(TinyStoriesData(), hashes=FileHashes(memory))  # as `train` does: it finds the corpus by this
    assert again.identity == source.identity
    with pytest.raises(DataError, match="--download"):
        read(again)
    assert hub == []
    with pytest.raises(DataError, match="--download"):
        open_text(TinyStoriesData(revision="other"), hashes=FileHashes(memory))


def test_wikipedia_and_wikitext_without_a_path_are_the_hubs(hub: list[dict[str, Any]]) -> None:
    for config in (WikipediaData(config_name="20231101.cs"), WikitextData()):
        source = open_text(config, hashes=FileHashes(), download=True)
        with pytest.raises(DataError) if isinstance(config, WikitextData) else nothing():
            assert read(source) == STORIES
    assert [call["config_name"] for call in hub if "name" in call] == ["20231101.cs", "wikitext-2-raw-v1"]


class nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_commit_given_in_full_is_taken_at_its_word(hub: list[dict[str, Any]]) -> None:
    source = open_text(TinyStoriesData(revision=COMMIT), hashes=FileHashes())
    assert source.identity == open_text(TinyStoriesData(), hashes=FileHashes(), download=True).identity


def test_what_the_hub_refuses_is_one_sentence(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known\nand more lines")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(DataError, match=r"could not be read from the hub \(Name or service not known\).*--data\.name"):
        open_text(TinyStoriesData(), hashes=FileHashes(), download=True)
    for given, words in (
        ({"split_name": "trian"}, r"Available splits.*--data\.split_name"),
        ({"config_name": "x"}, r"Available: \['default'\]"),
        ({"field": "body"}, "no field 'body', only text, id: set --data.field"),
        ({"field": "id"}, "'id' is a int, no text"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            texts(HubData.model_validate({"name": str(stories), **given}))
        assert "\n" not in str(caught.value)


def test_the_verb_downloads_only_what_is_remote(
    hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "tinystories", "--data.tokenizer.kind", "bytes"]) == 2
    assert "bonsai prepare tinystories --download" in capsys.readouterr().err
    assert main(["prepare", "tinystories", "--download", "--data.tokenizer.kind", "bytes"]) == 0
    assert "training" in capsys.readouterr().out
    hub.clear()
    assert main(["prepare", "tinystories", "--data.tokenizer.kind", "bytes"]) == 0  # it is here now: nobody is asked
    assert hub == []
    assert main(["prepare", "stdlib", "--download"]) == 2
    assert "leave it out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ WikiText

LINES = """ 
 = First article = 
 
 It has a sentence , with a well @-@ known hyphen and 1 @,@ 000 @.@ 5 things .
 = not a heading inside a paragraph = 
 
 = = Section = = 
 
 The " quoted words " ( in brackets ) don 't end ; do they ?
 
 = Second = article = 
 
 Short .
"""  # noqa: W291, W293


def wikitext_folder(folder: Path) -> Path:
    (folder / "a").mkdir()
    (folder / "a" / "wiki.train.tokens").write_text(LINES)
    return folder


def test_an_article_begins_at_its_heading(tmp_path: Path) -> None:
    found = texts(WikitextData(path=wikitext_folder(tmp_path)))
    assert "".join(found) == LINES.removeprefix(" \n")
    assert [text.split("\n")[0] for text in found] == [" = First article = ", " = Second = article = "]


def test_real_wikitext_has_sixty_articles_a_file(shared_data: Path) -> None:
    source = open_text(WikitextData(path=shared_data / "wikitext2" / "*.txt"), hashes=FileHashes())
    everything = list(source.stream(Cursor()))
    assert [sum(cursor.file == file for _, cursor in everything) for file in (0, 1)] == [60, 60]
    assert list(source.stream(everything[70][1])) == everything[71:]


def test_the_hubs_rows_are_put_together_over_its_shards(tmp_path: Path) -> None:
    rows = [line.strip(" ") if line.isspace() else line for line in LINES.splitlines(keepends=True)]
    rows = ["" if row == "\n" else row for row in rows]  # as Salesforce/wikitext has them
    for shard, part in enumerate((rows[:4], rows[4:])):  # the first article goes over the edge
        parquet.write_table(pa.table({"text": part}), tmp_path / f"train-{shard:05}-of-00002.parquet")
    config = WikitextData(name=str(tmp_path), config_name=None)
    found = texts(config)
    assert [len(text.split()) for text in found] == [len(t.split()) for t in texts_of_lines()]
    source = open_text(config, hashes=FileHashes())
    everything = list(source.stream(Cursor()))
    assert list(source.stream(everything[0][1])) == everything[1:]


def texts_of_lines() -> Iterator[str]:
    first, second = LINES.removeprefix(" \n").split(" = Second")
    yield from (first, " = Second" + second)


def test_the_tokenisation_is_undone_only_when_asked(tmp_path: Path) -> None:
    folder = wikitext_folder(tmp_path)
    assert "@-@" in texts(WikitextData(path=folder))[0]
    first = texts(WikitextData(path=folder, detokenize=True))[0]
    assert "It has a sentence, with a well-known hyphen and 1,000.5 things.\n" in first
    assert 'The "quoted words" (in brackets) don\'t end; do they?\n' in first
    assert first.startswith("= First article =\n")
    assert detokenized("plain text (as it is), unchanged.") == "plain text (as it is), unchanged."


def test_other_text_is_not_taken_for_wikitext(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time.\n")
    with pytest.raises(DataError, match=r"a\.txt, line 1 is no WikiText.*--data\.kind files"):
        texts(WikitextData(path=tmp_path / "a.txt"))
