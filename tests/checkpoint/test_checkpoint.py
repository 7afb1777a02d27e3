"""Checkpoints exist whole or not at all, and runs find the right one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.checkpoint import Checkpoint, RunDirectory, files
from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.errors import CheckpointError, OutputError
from bonsaigpt.files import replace_folder, restore_folders, write_text
from bonsaigpt.spec import initial_value, parameters

CONFIG = derive(RunConfig(), model={"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 4, "vocab_size": 257})


def checkpoint(step: int, best: int | None = None, seed: int = 0) -> Checkpoint:
    """A small one."""
    model = {p.name: initial_value(p, seed) for p in parameters(CONFIG.model) if p.tied_to is None}
    optimizer = {f"exp_avg.{name}": np.full_like(a, step) for name, a in model.items()}
    return Checkpoint(
        model=model, optimizer=optimizer, state={"step": step, "best_step": step if best is None else best}
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A new run without a checkpoint."""
    return RunDirectory.create(tmp_path / "runs" / "x", CONFIG, ByteTokenizer(), {"why": "test"})


def test_round_trip(run: RunDirectory) -> None:
    run.save(checkpoint(5))
    again = run.load()
    for name, array in checkpoint(5).model.items():
        assert np.array_equal(again.model[name], array)
    assert again.state == {"step": 5, "best_step": 5}
    assert again.optimizer.keys() == checkpoint(5).optimizer.keys()
    assert run.load(optimizer=False).optimizer == {}
    assert run.config == CONFIG
    assert run.tokenizer.vocab_size == 257
    assert run.environment == {"why": "test"}


def test_best_last_and_every_n_are_kept_apart(run: RunDirectory) -> None:
    for step, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]:
        made = checkpoint(step, best)
        made.state["keep"] = step % 3 == 0
        run.save(made)
    assert run.steps() == [2, 3, 5]
    assert run.load().state["step"] == 2
    assert run.load("best").state["step"] == 2
    assert run.load("last").state["step"] == 5
    assert run.load("3").state["step"] == 3
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4: it has 2, 3, 5"):
        run.load("4")
    with pytest.raises(CheckpointError, match="@lats"):
        run.load("lats")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_file_is_named_and_last_falls_back(run: RunDirectory, name: str, damage: str) -> None:
    run.save(checkpoint(1, 1))
    run.save(checkpoint(2, 1))
    path = run.folder(2) / name
    raw = path.read_bytes()
    if damage == "flip":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(raw[: len(raw) // 2])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        run.load("2")
    assert run.load("last").state["step"] == 1
    (run.folder(1) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        run.load("last")


def test_weights_of_another_configuration_are_refused(run: RunDirectory) -> None:
    run.save(checkpoint(1))
    text = (run.path / "config.toml").read_text()
    (run.path / "config.toml").write_text(text.replace("n_embd = 4", "n_embd = 6"))
    with pytest.raises(CheckpointError, match=r"shape \(257, 4\), the configuration says \(257, 6\)"):
        run.load()


def test_an_existing_run_is_never_written_over(run: RunDirectory) -> None:
    with pytest.raises(OutputError, match="--resume"):
        RunDirectory.create(run.path, CONFIG, ByteTokenizer(), {})


def test_opening_what_is_no_run(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'x'"):
        RunDirectory.open(tmp_path / "runs" / "xx")
    with pytest.raises(CheckpointError, match=r"no config\.toml"):
        RunDirectory.open(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        run.load()


def test_a_failed_write_leaves_the_older_checkpoint_and_nothing_else(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(checkpoint(1))
    before = sorted(p.name for p in run.checkpoints.rglob("*"))

    def full(path: Path, arrays: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "_save", full)
    with pytest.raises(OutputError, match="disk is full"):
        run.save(checkpoint(2))
    assert sorted(p.name for p in run.checkpoints.rglob("*")) == before
    assert run.load("last").state["step"] == 1


def test_replacing_survives_a_kill_between_its_two_renames(tmp_path: Path) -> None:
    home, aside = tmp_path / "step-1", tmp_path / ".step-1.part"
    for folder, text in ((home, "old"), (aside, "new")):
        folder.mkdir()
        (folder / "file").write_text(text)
    home.rename(tmp_path / ".step-1.old")  # what the kill left: the old one moved away, the new not yet in place
    restore_folders(tmp_path)
    assert (home / "file").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1"]
    aside.mkdir()
    (aside / "file").write_text("new")
    replace_folder(aside, home)
    assert (home / "file").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1"]


def test_write_text_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "one")
    monkeypatch.setattr("bonsaigpt.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OutputError, match="I/O error"):
        write_text(target, "two")
    assert target.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_nothing_is_ever_unpickled(run: RunDirectory) -> None:
    import pickle

    run.save(checkpoint(1))
    path = run.folder(1) / "model.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    manifest = json.loads((run.folder(1) / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = files._sha256(path)  # even if the manifest vouches for it
    (run.folder(1) / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        run.load("1")
