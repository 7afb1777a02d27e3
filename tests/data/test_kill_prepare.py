"""A preparation that is killed at any moment and started again ends in the same bytes.

SIGKILL cannot be caught, so nothing can be tidied up: it comes at random moments, and right before calls that force
files to the disk, give them their names, or delete them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.shards import open_corpus, verify_shards
from bonsaigpt.errors import DataError

if os.name != "posix":
    pytest.skip("processes are forked and killed as POSIX does", allow_module_level=True)

from preparing import KILLED, corpus_files, start


def finish(corpora: Path, *, workers: int = 0) -> dict[str, bytes]:
    """Type the command again: it must use what is there."""
    process = start(corpora, workers=workers)
    process.join(60)
    assert process.exitcode == 0
    said = corpora.parent / "said.txt"  # there is none if the corpus was in its place already
    assert not said.exists() or "beginning anew" not in said.read_text()
    return corpus_files(corpora)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a preparation that nobody disturbed."""
    files = finish(tmp_path_factory.mktemp("whole") / "corpora")
    assert len([name for name in files if name.startswith("train")]) > 2
    assert len([name for name in files if name.startswith("val")]) > 0
    return files


def test_twenty_kills_at_random_moments_change_nothing(whole: dict[str, bytes], tmp_path: Path) -> None:
    moments = random.Random(20)
    corpora = tmp_path / "corpora"
    went_on = finished = 0
    for _ in range(20):
        process = start(corpora, pause=0.002)
        time.sleep(moments.uniform(0.0, 0.25))
        process.kill()
        process.join()
        if process.exitcode == 0:
            finished += 1
            assert corpus_files(corpora) == whole
            shutil.rmtree(corpora)
        else:
            assert process.exitcode == KILLED
            went_on += bool(list(corpora.glob(".*.work/progress.json")))
    assert went_on > 5, "the kills came before there was anything to lose"
    assert finish(corpora) == whole
    assert not list(corpora.glob(".*.work"))


@pytest.mark.parametrize("name", ["fsync", "replace", "unlink"])
def test_a_kill_right_before_a_call_changes_nothing(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Some calls on the way, and every one of the last, from the last commit to the corpus in its place."""
    process = start(tmp_path / "counted/corpora", kill=(name, 0))
    process.join(60)
    counted = tmp_path / "counted/calls"
    total = int(counted.read_text()) if counted.exists() else 0
    for call in sorted({1, 2, total // 2, *range(total - 4, total + 1)} & set(range(1, total + 1))):
        corpora = tmp_path / str(call) / "corpora"
        process = start(corpora, kill=(name, call))
        process.join(60)
        assert process.exitcode == KILLED
        assert finish(corpora) == whole, f"killed before call {call} of os.{name}"


def test_worker_processes_end_with_a_killed_parent_and_change_nothing(whole: dict[str, bytes], tmp_path: Path) -> None:
    corpora = tmp_path / "corpora"
    process = start(corpora, workers=2, pause=0.02)
    deadline = time.monotonic() + 30
    while not list(corpora.glob(".*.work/progress.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.join()
    assert process.exitcode == KILLED
    assert children
    deadline = time.monotonic() + 10
    while any(_lives(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [child for child in children if _lives(child)]
    assert finish(corpora, workers=3) == whole


def _lives(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_at_once_take_turns(whole: dict[str, bytes], tmp_path: Path) -> None:
    corpora = tmp_path / "corpora"
    processes = [start(corpora, pause=0.002) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert corpus_files(corpora) == whole


def test_ctrl_c_keeps_what_is_done(whole: dict[str, bytes], tmp_path: Path) -> None:
    corpora = tmp_path / "corpora"
    process = start(corpora, pause=0.01)
    while not list(corpora.glob(".*.work/progress.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode not in (0, None)
    assert list(corpora.glob(".*.work/progress.json"))
    assert finish(corpora) == whole


@pytest.mark.parametrize("which", ["open", "closed"])
def test_a_byte_changed_between_stop_and_return_is_noticed(which: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    corpora = tmp_path / "corpora"
    process = start(corpora, kill=("replace", 24))
    process.join(60)
    shards = sorted(corpora.glob(".*.work/train-*.bin"))
    assert len(shards) > 1
    shard = shards[-1] if which == "open" else shards[0]
    raw = bytearray(shard.read_bytes())
    raw[10] ^= 1
    shard.write_bytes(raw)
    process = start(corpora)
    process.join(60)
    if which == "open":  # it is read again anyway: begun anew
        assert process.exitcode == 0
        assert "changed from outside: beginning anew" in (tmp_path / "said.txt").read_text()
        assert corpus_files(corpora) == whole
    else:  # it is read when all is verified at the end
        assert process.exitcode == 1
        [folder] = [p for p in corpora.iterdir() if not p.name.startswith(".")]
        with pytest.raises(DataError, match=r"train-000000\.bin was changed"):
            verify_shards(open_corpus(folder), FileHashes())
