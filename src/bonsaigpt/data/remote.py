"""Corpora that lie elsewhere: fetched by fsspec (s3://, gs://, hf://, https://, memory://), checked, and kept.

Nothing is fetched unless a setting names an address. A corpus is fetched whole before training, so no step ever waits
for a network: first ``corpus.json`` and the tokenizer, then shard after shard, each under a name of its own until its
SHA-256 is right. A call that was stopped goes on with the first shard that is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from bonsaigpt.errors import DataError, DeviceError
from bonsaigpt.files import file_aside
from bonsaigpt.progress import Advance

__all__ = ["corpus_folder"]

_CHUNK = 2**22
"""Bytes that are read at once."""


def corpus_folder(path: str, corpora: Path, *, advance: Advance) -> Path:
    """The folder of a corpus: a local one as it is; a remote one in ``corpora``, fetched first as far as it is missing.

    Raises:
        DataError: the address cannot be read, is no corpus, or a shard is not what its hash says.
        DeviceError: the package that reads such addresses is not installed.
    """
    if "://" not in path:
        return Path(path).expanduser()
    described = _read(path, "corpus.json")
    name = PurePosixPath(path.rstrip("/")).name
    folder = corpora / f"remote-{name}-{hashlib.sha256(described).hexdigest()[:12]}"
    try:
        shards = json.loads(described)["shards"]
        wanted = {str(s["file"]): str(s["sha256"]) for s in shards}
        tokenizer_digest = json.loads(described)["tokenizer"].get("sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}/corpus.json does not describe a corpus ({error}): check the address.") from None
    if strange := [file for file in wanted if Path(file).name != file]:
        raise DataError(
            f"{path}/corpus.json names {strange[0]!r}, which is no plain file name: it is not to be trusted."
        )
    if (folder / "corpus.json").exists():  # it is written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for file, digest in wanted.items():
        if not (folder / file).exists():
            _fetch(path, folder / file, digest, advance)
    tokenizer = _read(path, "tokenizer.json")
    _check(path, "tokenizer.json", hashlib.sha256(tokenizer).hexdigest(), tokenizer_digest)
    for file, content in (("tokenizer.json", tokenizer), ("corpus.json", described)):
        with file_aside(folder / file) as aside:
            aside.write_bytes(content)
    return folder


def _fetch(path: str, target: Path, digest: str, advance: Advance) -> None:
    found = hashlib.sha256()
    with file_aside(target) as aside:
        with _open(path, target.name) as source, aside.open("wb") as out:
            while chunk := _guarded(path, target.name, lambda: source.read(_CHUNK)):
                out.write(chunk)
                found.update(chunk)
                advance(f"fetching {target.name}", out.tell(), 0)
        _check(path, target.name, found.hexdigest(), digest)


def _check(path: str, file: str, found: str, stated: str | None) -> None:
    """Compare hashes; corpora of earlier versions state none of their tokenizer."""
    if stated is not None and found != stated:
        raise DataError(
            f"{path}/{file} has the SHA-256 {found[:12]}..., its corpus.json says {stated[:12]}...: it was changed or "
            "damaged on its way. Try again, or prepare it anew over there"
        )


def _read(path: str, file: str) -> bytes:
    with _open(path, file) as source:
        return _guarded(path, file, source.read)


def _open(path: str, file: str) -> Any:
    return _guarded(path, file, lambda: import_module("fsspec").open(f"{path.rstrip('/')}/{file}", "rb").open())


def _guarded(path: str, file: str, work: Callable[[], Any]) -> Any:
    """Whatever a file system raises, in one sentence: each has errors of its own."""
    try:
        return work()
    except ImportError as error:
        scheme = path.partition("://")[0]
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}.get(scheme, f"for {scheme}://")
        raise DeviceError(f"{path} needs a package that is not here ({error}): pip install {package}") from None
    except Exception as error:
        raise DataError(
            f"{path}/{file} cannot be read ({type(error).__name__}: {error}): check the address, the network and your "
            "rights, or give the folder of a corpus on this disk"
        ) from None
