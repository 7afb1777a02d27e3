"""A model's folder from the Hugging Face hub: settings, safetensors and tokenizer of one commit, and nothing else.

What comes is distrusted as any folder is (``huggingface.py``). The files of the weights are held against the SHA-256
that the hub keeps of them; the commit stands in ``fetched.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from bonsaigpt.errors import CheckpointError, DeviceError, OutputError
from bonsaigpt.files import replace_folder, write_text, writing

__all__ = ["fetch_model", "is_hub_name"]

_SMALL = {
    "LICENSE",
    "README.md",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_TIMEOUT = 30
"""Seconds that the hub has for an answer."""


def is_hub_name(address: str) -> bool:
    """Whether it is written as the hub writes the names of models, OWNER/NAME."""
    return re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*", address, re.ASCII) is not None


def fetch_model(name: str, folder: Path, *, revision: str | None = None) -> str:
    """Fetch a model; the folder exists whole or not at all. What a download that was broken off has fetched is kept
    beside it, and the next one of the same commit goes on from there.

    Args:
        name: OWNER/NAME.
        revision: branch, tag or commit; none means the newest.

    Returns:
        The commit.

    Raises:
        CheckpointError: no such model, no safetensors, no network, or files that are not those that the hub means.
        DeviceError: the package ``huggingface_hub`` is not installed.
        OutputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"{folder} exists already: choose another place with --out, or remove it")
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise DeviceError("the hub needs the package huggingface_hub: pip install 'bonsaigpt[hub]'") from None
    try:
        found = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT, files_metadata=True)
    except Exception as error:  # of several libraries
        raise _failed(name, error) from None
    commit, files = _wanted(name, found)
    part = folder.with_name(f".{folder.name}.{commit[:12]}.part")
    with writing(folder):
        part.mkdir(parents=True, exist_ok=True)
        for file in sorted(files):
            try:
                hf_hub_download(name, file, revision=commit, local_dir=part)
            except Exception as error:  # of several libraries
                raise _failed(name, error) from None
            _check(part / file, files[file])
        shutil.rmtree(part / ".cache", ignore_errors=True)  # the library's notes on what it has fetched
        told = {"name": name, "revision": revision, "commit": commit, "sha256": {f: s for f, s in files.items() if s}}
        write_text(part / "fetched.json", json.dumps(told, indent=2) + "\n")
        replace_folder(part, folder)
    return commit


def _wanted(name: str, found: Any) -> tuple[str, dict[str, str | None]]:
    """The commit, and the files that are fetched, each with its SHA-256 where the hub keeps one."""
    files = {
        each.rfilename: each.lfs.sha256 if each.lfs is not None else None
        for each in found.siblings or []
        if each.rfilename in _SMALL or _WEIGHTS.fullmatch(each.rfilename)
    }
    if not re.fullmatch("[0-9a-f]{40}", found.sha or ""):
        raise CheckpointError(f"the hub does not say which commit {name} is at: give one with --revision")
    if "config.json" not in files or not any(_WEIGHTS.fullmatch(file) for file in files):
        raise CheckpointError(
            f"{name} of the hub has no config.json with model.safetensors beside it: other formats are not fetched"
        )
    return found.sha, files


def _check(path: Path, wanted: str | None) -> None:
    if wanted is None:
        return
    with path.open("rb") as file:
        has = hashlib.file_digest(file, "sha256").hexdigest()
    if has != wanted:
        path.unlink()
        raise CheckpointError(f"{path.name} came with SHA-256 {has}, the hub says {wanted}: fetch it again")


def _failed(name: str, error: object) -> CheckpointError:
    why = " ".join(str(error).split())[:300]
    return CheckpointError(
        f"{name} could not be fetched from the hub ({type(error).__name__}: {why}): check name and network, and fetch "
        "it again, which goes on where this stopped"
    )
