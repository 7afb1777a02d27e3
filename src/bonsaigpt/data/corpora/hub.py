"""Source `hub`: data sets of the Hugging Face hub, read as a stream by its own library `datasets`.

Nothing goes over the network unless the caller says ``download``. The commit that a download found is remembered, so
that training finds the corpus that was made of it, and never asks the hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bonsaigpt.config import HubText
from bonsaigpt.data.corpora.document import in_parts
from bonsaigpt.data.corpora.files import hashed
from bonsaigpt.data.corpora.source import Clean, Cursor, Document, Source, as_it_is, identity, reading
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.errors import DataError, DeviceError
from bonsaigpt.progress import Advance

__all__ = ["Rows", "open_hub"]

_TIMEOUT = 20.0
"""Seconds to wait for the hub's first answer."""

Rows = Callable[[int], Iterator[tuple[str, str]]]
"""Name and text of each row of a shard, by its number."""

Group = Callable[[Iterator[tuple[str, str]]], Iterator[tuple[str, str]]]
"""Makes documents of rows, where a row is none."""


def open_hub(
    config: HubText,
    *,
    hashes: FileHashes,
    download: bool,
    advance: Advance,
    group: Group | None = None,
    clean: Clean = as_it_is,
    settings: object = None,
) -> Source:
    """The rows of one split, shard after shard.

    Args:
        config: which data set.
        hashes: of local files, and the commits of remote data sets.
        download: whether the network may be used.
        advance: hears of the bytes that are hashed.
        group: makes documents of rows; then all shards are read as one, since a document may go over their edges.
        clean: makes a document of what is read.
        settings: what decides, besides the data set, what the documents are.

    Raises:
        DataError: it is not here and not to be fetched, or the hub does not give it.
        DeviceError: the packages for it are not there.
    """
    place = Path(config.name)
    if place.is_dir():
        files = sorted((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.relative_to(place).as_posix())
        # Names count: they tell the splits apart.
        what: object = [[p.relative_to(place).as_posix() for p in files], hashed(files, hashes, advance)]
        commit = None
    else:
        commit = _commit(config, hashes, download, advance)
        what = [config.name, commit]

    def stream(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        if commit is not None and not download:
            raise _not_here(config)
        shards, rows = _open(config, commit)

        def read(number: int) -> Iterator[tuple[Document, int]]:
            position = 0
            if group is not None:
                documents = group(row for shard in range(shards) for row in rows(shard))
            else:
                documents = rows(number)
            for name, text in documents:
                for document in in_parts(name, text):
                    position += len(document.text) if document.text.isascii() else len(document.text.encode())
                    yield document, position

        return reading(1 if group is not None else shards, read)(start)

    return Source(
        name=" ".join(filter(None, [config.name, config.config_name, config.split_name, commit])),
        identity=identity("hub", what, config.config_name, config.split_name, config.field, settings),
        size=None,
        stream=stream,
        clean=clean,
    )


def _commit(config: HubText, hashes: FileHashes, download: bool, advance: Advance) -> str:
    """The commit that the revision means: as the hub says now, or, without a download, as it said last."""
    if config.revision is not None and re.fullmatch("[0-9a-f]{40}", config.revision):
        return config.revision
    asked = f"{config.name}@{config.revision or 'main'}"
    if not download:
        known = hashes.commit(asked)
        if known is None:
            raise _not_here(config)
        return known
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise _no_packages() from None
    advance(f"asking the hub for {config.name}", 0, 0)
    try:
        found = HfApi().dataset_info(config.name, revision=config.revision, timeout=_TIMEOUT).sha
    except Exception as error:  # of several libraries
        raise _failed(config, error) from None
    if found is None:
        raise _failed(config, "it does not say which commit")
    hashes.remember_commit(asked, found)
    return found


def _open(config: HubText, commit: str | None) -> tuple[int, Rows]:
    """Number of shards, and how to read one."""
    try:
        import datasets
    except ImportError:
        raise _no_packages() from None
    datasets.disable_progress_bars()
    try:
        found: Any = datasets.load_dataset(
            config.name, config.config_name, split=config.split_name, revision=commit, streaming=True
        )
        columns = found.column_names
        if columns is None:  # only the data tell
            columns = list(next(iter(found), {}))
        shards: int = found.num_shards
    except Exception as error:  # of several libraries
        raise _failed(config, error) from None
    if config.field not in columns:
        raise DataError(f"{config.name} has no field '{config.field}', only {', '.join(columns)}: set --data.field.")
    found = found.select_columns([config.field])

    def rows(shard: int) -> Iterator[tuple[str, str]]:
        try:
            for number, row in enumerate(found.shard(num_shards=shards, index=shard), start=1):
                text = row[config.field]
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise DataError(
                        f"{config.name}: the field '{config.field}' is a {type(text).__name__}, no text: "
                        "set --data.field."
                    )
                yield f"{config.name}, shard {shard}, row {number}", text
        except DataError:
            raise
        except Exception as error:  # of several libraries
            raise _failed(config, error) from None

    return shards, rows


def _not_here(config: HubText) -> DataError:
    return DataError(
        f"{config.name} must be fetched from the Hugging Face hub, and nothing but `bonsai prepare "
        f"{dict(config)['kind']} --download` with the same settings does so. Without a network, give a folder with its "
        "files as --data.name, or use --data.kind files --data.path 'FOLDER/*.parquet'."
    )


def _failed(config: HubText, error: object) -> DataError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "scripts are no longer supported" in lines[0]:
        lines[0] += ", so try --data.revision refs/convert/parquet"
    return DataError(
        f"{config.name} could not be read from the hub ({lines[0]}): check --data.name, --data.config_name and "
        "--data.split_name, and the network; without one, give a folder with its files as --data.name, or use "
        "--data.kind files --data.path 'FOLDER/*.parquet'."
    )


def _no_packages() -> DeviceError:
    return DeviceError("data sets of the hub need the package datasets: pip install 'bonsaigpt[hub]'")
