"""Models of the hub, by a hub of this test's own: only when asked, one commit, whole, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bonsaigpt.cli import main
from bonsaigpt.errors import CheckpointError, DeviceError
from bonsaigpt.interop.hub import fetch_model, is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the package ``huggingface_hub`` gives, of one model."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.fetched: list[str] = []
        self.asked: list[str | None] = []
        self.breaks_at: str | None = None
        self.sha256 = {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n.endswith(".safetensors")}

    def HfApi(self) -> Hub:
        return self

    def model_info(self, name: str, *, revision: str | None, timeout: float, files_metadata: bool) -> Any:
        assert files_metadata
        assert timeout
        self.asked.append(revision)
        siblings = [
            SimpleNamespace(
                rfilename=file, lfs=SimpleNamespace(sha256=self.sha256[file]) if file in self.sha256 else None
            )
            for file in self.files
        ]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def hf_hub_download(self, name: str, file: str, *, revision: str, local_dir: Path) -> None:
        assert revision == COMMIT
        if file == self.breaks_at:
            raise ConnectionError("the line went dead")
        notes = local_dir / ".cache" / "huggingface"
        notes.mkdir(parents=True, exist_ok=True)
        (notes / file).write_text("fetched")
        if not (local_dir / file).exists():
            self.fetched.append(file)
            (local_dir / file).write_bytes(self.files[file])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    monkeypatch.chdir(tmp_path)
    files = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "modeling_evil.py": b"code",
        "onnx/model.safetensors": b"elsewhere",
        "../model.safetensors": b"outside",
    }
    made = Hub(files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)  # pyright: ignore[reportArgumentType]
    return made


def test_a_model_is_fetched_at_one_commit(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "owner/small", "--revision", "v1"]) == 0
    folder = Path("models") / "small"
    assert f"{folder}: owner/small at commit {COMMIT}" in capsys.readouterr().out
    assert hub.asked == ["v1"]
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "fetched.json"}
    told = json.loads((folder / "fetched.json").read_text())
    assert (told["name"], told["revision"], told["commit"]) == ("owner/small", "v1", COMMIT)
    assert told["sha256"] == {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    assert [p.name for p in Path("models").iterdir()] == ["small"]
    assert main(["fetch", "owner/small"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_was_broken_off_goes_on(hub: Hub) -> None:
    hub.breaks_at = "tokenizer.json"
    with pytest.raises(CheckpointError, match=r"the line went dead.*goes on where this stopped"):
        fetch_model("owner/small", Path("small"))
    assert not Path("small").exists()
    hub.breaks_at = None
    assert fetch_model("owner/small", Path("small")) == COMMIT
    assert hub.fetched == ["config.json", "model.safetensors", "tokenizer.json"]
    assert Path("small/model.safetensors").read_bytes() == b"weights"


def test_other_bytes_than_the_hub_means_are_refused_and_fetched_again(hub: Hub) -> None:
    whole, hub.files["model.safetensors"] = hub.files["model.safetensors"], b"something else"
    with pytest.raises(CheckpointError, match=r"model.safetensors came with SHA-256"):
        fetch_model("owner/small", Path("small"))
    assert not Path("small").exists()
    hub.files["model.safetensors"] = whole
    assert fetch_model("owner/small", Path("small")) == COMMIT


def test_pickles_alone_are_not_fetched(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(CheckpointError, match="other formats are not fetched"):
        fetch_model("owner/small", Path("small"))
    assert not hub.fetched
    assert not list(Path().iterdir())


def test_nothing_else_goes_to_the_hub(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "owner/small", "--prompt", "a"]) == 2
    assert "bonsai fetch owner/small" in capsys.readouterr().err
    assert main(["fetch", "small"]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err
    assert not hub.asked


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DeviceError, match=r"pip install 'bonsaigpt\[hub\]'"):
        fetch_model("owner/small", tmp_path / "small")


@pytest.mark.parametrize("address", ["gpt2", "a/b/c", "../b", "a/..", "a b/c", "/b", "a/"])
def test_what_is_no_name_of_the_hub(address: str) -> None:
    assert is_hub_name("openai-community/gpt2")
    assert not is_hub_name(address)
