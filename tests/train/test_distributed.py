"""Several processes train as one: equal losses, whoever is killed, however many they are from one start to the next.

The yardstick is always one process with the same configuration. Processes add the same float32 numbers in another
order, so losses of about 2.5 may differ by some 2^-24 of their size a step; 1e-5 over 50 steps is the bar, and the
broken variants (``WRONG``) miss it by far.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.cli import main
from bonsaigpt.errors import CheckpointError
from bonsaigpt.train.callbacks.jsonl import read_metrics

if os.name != "posix":
    pytest.skip("processes are forked and killed as POSIX does", allow_module_level=True)

from crowd import BAR, DDP, FSDP, Crowd, errors, gap, run_crowd
from launcher import KILLED, run

CUT = ("--train.micro_batch", "1")
# All that a shard must get right beside AdamW: whole matrices for Muon, an average, grouped heads, a head of its own,
# factors.
# One iteration of Muon: each further one blows up the rounding in directions that hold nothing else (five part the
# losses by 7e-4), which says nothing about who added up what.
RICH = (
    *("--optim.matrices.kind", "muon", "--optim.matrices.precision", "fp32", "--optim.matrices.iterations", "1"),
    *("--optim.ema", "0.9", "--optim.z_loss", "1e-4"),
    *("--model.attention.n_kv_head", "1", "--model.tie_embeddings", "false", "--model.bias", "true"),
    "--model.structure",
    '{"*.c_fc.weight": {"kind": "kronecker", "a_shape": [8, 4], "terms": 3}, '
    '"*.mlp.c_proj.weight": {"kind": "lowrank", "rank": 4}, '
    '"*.attn.c_proj.weight": {"kind": "monarch", "a_shape": [4, 4]}}',
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    """A folder with the runs of one process, and the prepared text."""
    folder = tmp_path_factory.mktemp("alone")
    for name, more in (("plain", ("--train.keep_every", "10")), ("rich", RICH)):
        assert run(folder, [*command, "--train.workers", "1", "--name", name, *more]) == 0, errors(folder)
    return folder


@pytest.fixture
def folder(alone: Path, tmp_path: Path) -> Path:
    """An empty place to train in; the text is prepared."""
    shutil.copytree(alone / "corpora", tmp_path / "corpora")
    return tmp_path


def distance(one: Checkpoint, other: Checkpoint) -> float:
    """The largest difference of a weight."""
    assert one.model.keys() == other.model.keys()
    assert one.optimizer.keys() == other.optimizer.keys()
    assert all(one.optimizer[name].shape == other.optimizer[name].shape for name in one.optimizer)
    return max(float(np.abs(one.model[name] - other.model[name]).max()) for name in one.model)


# ------------------------------------------------------------------------------------------------ equal to one process


@pytest.mark.parametrize(
    ("size", "flags", "yardstick"),
    [
        pytest.param(2, (*DDP, *CUT), "plain", id="ddp"),
        pytest.param(2, (*FSDP, *CUT), "plain", id="fsdp"),
        pytest.param(3, (*DDP, *RICH), "rich", id="ddp-rich", marks=pytest.mark.slow),
        pytest.param(3, (*FSDP, *RICH), "rich", id="fsdp-rich"),
    ],
)
def test_processes_train_as_one(
    size: int, flags: tuple[str, ...], yardstick: str, alone: Path, folder: Path, command: list[str]
) -> None:
    assert run_crowd(folder, [*command, "--name", "crowd", *flags], size) == [0] * size, errors(folder)
    assert gap(folder / "runs/crowd", alone / "runs" / yardstick) <= BAR
    found, expected = (RunDirectory.open(r).load("last") for r in (folder / "runs/crowd", alone / "runs" / yardstick))
    # Muon brings the directions that hold nothing but rounding to full size too, so its weights part a little.
    assert distance(found, expected) <= (BAR if yardstick == "plain" else 5e-3)
    names = sorted(p.name for p in (folder / "runs/crowd/checkpoints/step-000050").iterdir())
    shards = size if "fsdp" in flags else 0
    assert len([n for n in names if n.startswith("model-")]) == shards
    assert (folder / "output.txt").read_text().count("step     50") == 1  # one log
    assert errors(folder) == ""


def test_layers_that_share_keys_and_values_train_in_shards(folder: Path, command: list[str]) -> None:
    """A block hands keys and values on to the next: their gradient comes back to weights that were taken apart in the
    meantime."""
    argv = [*command, "--train.steps", "15", "--train.eval_interval", "15", "--model.n_layer", "2", *CUT]
    sharing = [*argv, "--model.attention.share_kv", "2"]
    assert run(folder, [*sharing, "--train.workers", "1", "--name", "one"]) == 0, errors(folder)
    assert run(folder, [*argv, "--train.workers", "1", "--name", "own"]) == 0, errors(folder)
    assert run_crowd(folder, [*sharing, "--name", "crowd", *FSDP], 2) == [0, 0], errors(folder)
    assert gap(folder / "runs/crowd", folder / "runs/one") <= BAR
    found, expected = (RunDirectory.open(folder / "runs" / name).load("last") for name in ("crowd", "one"))
    assert distance(found, expected) <= BAR
    assert gap(folder / "runs/own", folder / "runs/one") > 100 * BAR  # sharing is no other way to write the same


WRONG = {
    # The mean of every process' own mean: what one gets who forgets that rows may be shared unevenly.
    "mean of means": """
import dataclasses
import bonsaigpt.torch_engine.engine as engine
step = engine.train_step
def wrong(state, batch, **more):
    world = state.layout.world
    own = batch.part(world.process.rank, world.size)
    return step(state, dataclasses.replace(batch, count=own.targets_BT.size * world.size), **more)
engine.train_step = wrong
""",
    # Synchronisation switched between forward and backward pass (build-nanogpt, issue 30).
    "switched too late": """
import contextlib
from bonsaigpt.torch_engine.parallel import Replicated
@contextlib.contextmanager
def wrong(self, *, last):
    ddp = self.learners[0]
    late = ddp.register_forward_hook(lambda *_: setattr(ddp, "require_backward_grad_sync", last))
    yield
    late.remove()
Replicated.passing = wrong
""",
    # Every process sees the whole batch: nothing but the number of tokens would betray it.
    "no shares": """
from bonsaigpt.data.batches import Batch
Batch.share = lambda self, rank, size: self
""",
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_notices(mistake: str, alone: Path, folder: Path, command: list[str]) -> None:
    argv = [*command, "--name", "wrong", *DDP, *CUT]
    assert run_crowd(folder, argv, 2, patch=WRONG[mistake]) == [0, 0], errors(folder)
    assert gap(folder / "runs/wrong", alone / "runs/plain") > 100 * BAR


def test_exact_rows_are_counted_once(folder: Path, tiny_flags: list[str]) -> None:
    """37 lists over 3 processes: no list is scored twice, and none that was only added to fill up."""
    toy = ["train", "sort", *tiny_flags, "--data.val_examples", "37", "--data.length", "3", "--train.steps", "20"]
    toy += ["--train.compile", "off", "--train.workers", "1"]
    assert run(folder, [*toy, "--name", "one"]) == 0, errors(folder)
    assert run_crowd(folder, [*toy, "--name", "three"], 3) == [0, 0, 0], errors(folder)
    scores = [read_metrics(folder / "runs" / name / "metrics.jsonl")[-1] for name in ("one", "three")]
    assert scores[0]["val_exact"] == scores[1]["val_exact"]
    assert scores[0]["val_tokens"] == scores[1]["val_tokens"] == 37 * 3
    assert scores[0]["val_loss"] == pytest.approx(scores[1]["val_loss"], abs=BAR)


# ------------------------------------------------------------------------------------------------ kills and numbers


@pytest.mark.parametrize(
    ("first", "last"),
    [
        pytest.param(DDP, FSDP, id="ddp-fsdp"),
        pytest.param(FSDP, DDP, id="fsdp-ddp"),
        pytest.param(DDP, DDP, id="ddp-ddp", marks=pytest.mark.slow),
        pytest.param(FSDP, FSDP, id="fsdp-fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_then_one_then_two(
    first: tuple[str, ...], last: tuple[str, ...], alone: Path, folder: Path, command: list[str]
) -> None:
    """Two processes until one is killed, one alone until it is killed, and two again."""
    argv = [*command, "--name", "crowd", "--auto-resume"]
    step = "bonsaigpt.torch_engine.engine.train_step"
    codes = run_crowd(folder, [*argv, *first], 2, kill={1: (step, 17)})
    assert codes[1] == KILLED
    assert codes[0] != 0
    assert "another process of this run is gone" in errors(folder)
    assert run(folder, [*argv, "--train.workers", "1"], (step, 14)) == KILLED
    (folder / "errors.txt").unlink()
    assert run_crowd(folder, [*argv, *last], 2) == [0, 0], errors(folder)
    assert gap(folder / "runs/crowd", alone / "runs/plain") <= BAR
    found, expected = (RunDirectory.open(r).load("last") for r in (folder / "runs/crowd", alone / "runs/plain"))
    assert distance(found, expected) <= BAR
    assert len(RunDirectory.open(folder / "runs/crowd").environment["resumed"]) == 2


@pytest.mark.parametrize(
    ("parallel", "rank", "call"),
    [
        pytest.param(DDP, 0, ("bonsaigpt.checkpoint.rundir.replace_folder", 1), id="no run"),
        pytest.param(FSDP, 1, ("bonsaigpt.torch_engine.engine.train_step", 3), id="no checkpoint"),
        pytest.param(FSDP, 0, ("bonsaigpt.checkpoint.files.replace_folder", 2), id="half a checkpoint"),
    ],
)
def test_killed_early_it_goes_on_by_itself(
    parallel: tuple[str, ...], rank: int, call: tuple[str, int], alone: Path, folder: Path, command: list[str]
) -> None:
    """As torchrun does it: the same command again, with the number of restarts in the environment."""
    argv = [*command, "--name", "crowd", *parallel]
    codes = run_crowd(folder, argv, 2, kill={rank: call})
    assert codes[rank] == KILLED
    assert 0 not in codes
    assert run_crowd(folder, argv, 2, restarts=1) == [0, 0], errors(folder)
    assert gap(folder / "runs/crowd", alone / "runs/plain") <= BAR
    assert list((folder / "runs").rglob(".*")) == []
    assert run_crowd(folder, argv, 2, restarts=2) == [0, 0]  # a restart after the end finds nothing to do
    assert run_crowd(folder, argv, 2) == [2, 2]  # but without one the name is taken


@pytest.mark.parametrize("parallel", [pytest.param(DDP, marks=pytest.mark.slow), FSDP], ids=["ddp", "fsdp"])
def test_a_signal_to_one_stops_all_at_one_step(
    parallel: tuple[str, ...], alone: Path, folder: Path, command: list[str]
) -> None:
    forever = [*command, "--name", "crowd", *parallel, "--train.steps", "1000000", "--train.eval_interval", "1000000"]
    crowd = Crowd(folder, forever, 2)
    crowd.wait_until_training()
    while len(read_metrics(folder / "runs/crowd/metrics.jsonl")) < 5:
        time.sleep(0.02)
    crowd.send(1, signal.SIGTERM)
    assert crowd.codes() == [143, 143], errors(folder)
    assert "SIGTERM: saved at step" in (folder / "output.txt").read_text()
    saved = RunDirectory.open(folder / "runs/crowd").load("last")
    more = str(saved.state["step"] + 5)
    assert run_crowd(folder, ["train", "runs/crowd", "--resume", "--train.steps", more], 2) == [0, 0], errors(folder)
    whole = [*command, "--name", "whole", "--train.workers", "1", "--train.steps", more]
    assert run(folder, [*whole, "--train.eval_interval", "1000000"]) == 0
    found, expected = (RunDirectory.open(folder / "runs" / name).load("last") for name in ("crowd", "whole"))
    assert found.state["step"] == expected.state["step"]
    assert distance(found, expected) <= BAR


# ------------------------------------------------------------------------------------------------ shards on the disk

SLOWLY = """
import time
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as Writer
write = Writer.write_data
def slowly(self, *arguments):
    time.sleep(0.4)
    return write(self, *arguments)
Writer.write_data = slowly
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, alone: Path, command: list[str]) -> Path:
    """A run in shards whose checkpoints are written so slowly that the training has gone on long since."""
    folder = tmp_path_factory.mktemp("shards")
    shutil.copytree(alone / "corpora", folder / "corpora")
    argv = [*command, "--name", "slow", *FSDP, "--train.keep_every", "10", "--train.eval_interval", "1000"]
    assert run_crowd(folder, argv, 2, patch=SLOWLY) == [0, 0], errors(folder)
    return folder


def test_a_slow_disk_keeps_the_moment_of_saving(shards: Path, alone: Path) -> None:
    found, expected = RunDirectory.open(shards / "runs/slow"), RunDirectory.open(alone / "runs/plain")
    assert found.steps() == expected.steps() == [10, 20, 30, 40, 50]
    for step in found.steps():
        assert distance(found.load(str(step)), expected.load(str(step))) <= BAR
    assert distance(found.load("10"), found.load("20")) > 100 * BAR
    assert (found.checkpoints / "last").read_text() == "step-000050\n"


def test_every_verb_opens_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    assert main(["sample", "runs/slow@20", "--tokens", "5", "--prompt", "the"]) == 0
    assert main(["eval", "runs/slow"]) == 0
    assert main(["report", "runs/slow"]) == 0
    assert main(["compare", "runs/slow"]) == 0


def test_a_damaged_shard_is_named_and_the_checkpoint_before_it_used(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards / "runs/slow", tmp_path / "slow")
    opened = RunDirectory.open(tmp_path / "slow")
    shard = opened.folder(50) / "model-2.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is damaged"):
        opened.load("50")
    assert read_state(opened.find("last"))["step"] == 40
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing"):
        opened.load("50")


def test_a_full_disk_leaves_the_checkpoint_before(alone: Path, folder: Path, command: list[str]) -> None:
    full = """
import errno
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter as Writer
write, calls = Writer.write_data, []
def once_full(self, *arguments):
    calls.append(1)
    if len(calls) == 3 and __import__("os").environ["RANK"] == "1":
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
    return write(self, *arguments)
Writer.write_data = once_full
"""
    argv = [*command, "--name", "crowd", *FSDP]
    assert run_crowd(folder, argv, 2, patch=full) == [2, 2], errors(folder)
    assert errors(folder).count("the disk is full") == 1
    assert RunDirectory.open(folder / "runs/crowd").load("last").state["step"] == 20
    assert list((folder / "runs").rglob(".*")) == []
    assert run_crowd(folder, [*argv, "--auto-resume"], 2) == [0, 0], errors(folder)
    assert gap(folder / "runs/crowd", alone / "runs/plain") <= BAR


# ------------------------------------------------------------------------------------------------ what users get wrong


def test_mistakes_are_told_once(folder: Path, command: list[str]) -> None:
    assert run_crowd(folder, [*command, "--train.stepz", "3"], 3) == [2, 2, 2]
    assert errors(folder).count("Did you mean") == 1
    (folder / "errors.txt").unlink()
    assert run_crowd(folder, [*command, "--train.device", "cuda:1"], 2) == [2, 2]
    assert "cannot be shared by 2 processes" in errors(folder)
    assert not (folder / "runs").exists()


def test_machines_that_share_no_disk_are_told(alone: Path, folder: Path, command: list[str]) -> None:
    """A run that the second process does not see must not be resumed by the first alone."""
    for place in ("a", "b"):
        shutil.copytree(alone / "corpora", folder / place / "corpora")
    shutil.copytree(alone / "runs/plain", folder / "a/runs/crowd")
    argv = [*command, "--name", "crowd", "--auto-resume", "--train.steps", "60"]
    codes = run_crowd(folder, argv, 2, folders=[folder / "a", folder / "b"])
    assert 0 not in codes
    assert "file system that all machines share" in errors(folder / "b")
    assert not (folder / "b/runs").exists()


def test_restarts_over_machines_that_would_hang_are_refused(folder: Path, command: list[str]) -> None:
    agents = """
import os
os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
"""
    assert run_crowd(folder, [*command, "--name", "crowd"], 2, patch=agents) == [2, 2]
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in errors(folder)
