"""Disks that refuse to be written: one clear line, and whatever is there under a checkpoint's name is one."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bonsaigpt.checkpoint import files
from bonsaigpt.cli import main
from tests.cli.spoiling import NEW, assert_one_line, assert_unchanged, tree


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The operating system refuses to let a file of this process grow beyond ``size`` bytes."""
    resource = pytest.importorskip("resource", reason="this system has no limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mount(*arguments: str, at: Path) -> None:
    """Mount something, or skip the test with the reason."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root on Linux")
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this root may not mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 512 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=512k", "none", at=path)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, *, leave: int) -> None:
    """Fill the disk but for ``leave`` bytes."""
    room = os.statvfs(disk)
    (disk / "ballast").write_bytes(b"\0" * (room.f_bavail * room.f_frsize - leave))


def assert_checkpoints_are_whole(run: Path) -> None:
    """Whatever is there under a checkpoint's name is one, and nothing lies beside."""
    for folder in (run / "checkpoints").glob("*"):
        assert not folder.name.startswith("."), folder
        if folder.is_dir():
            files.check(folder)


@pytest.mark.parametrize("leave", [0, 4096, 8192, 12288, 16384, 32768, 49152, 65536, 90112])
def test_a_full_disk_is_one_line_and_leaves_whole_things_only(
    leave: int, workshop: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up at nine moments between the making of the run and its second checkpoint."""
    fill(small_disk, leave=leave)
    command = shlex.split(f"train tiny.toml --name new --runs {small_disk}/runs --train.keep_every 1")
    capsys.readouterr()
    assert main([*command, "--train.eval_interval", "1"]) == 2
    assert_one_line(capsys.readouterr().err, ("the disk is full", "Free some space"))
    run = small_disk / "runs/new"
    assert_checkpoints_are_whole(run)
    (small_disk / "ballast").unlink()
    if not run.exists():
        assert list(small_disk.iterdir()) == []
    assert main([*command] if not run.exists() else ["train", str(run), "--resume"]) == 0


def test_a_corpus_on_a_full_disk_is_one_line(
    workshop: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(small_disk, leave=0)
    before = tree(workshop)
    capsys.readouterr()
    assert main(shlex.split(f"{NEW} --corpora {small_disk}/corpora")) == 2
    assert_one_line(capsys.readouterr().err, ("the disk is full", "Free some space"))
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    assert_unchanged(before, workshop)


@pytest.mark.parametrize("limit", [16, 1000, 3000, 16384])
def test_a_refused_write_is_one_line_and_leaves_whole_things_only(
    limit: int, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a full disk, on any POSIX system: no file may grow beyond ``limit`` bytes (the optimizer's needs 28 kB)."""
    before = tree(workshop)
    capsys.readouterr()
    with file_size_limit(limit):
        code = main(shlex.split(NEW))
    assert code == 2
    assert_one_line(capsys.readouterr().err, ("could not be written", "File too large", "Check"))
    run = workshop / "runs/new"
    if run.exists():
        assert_checkpoints_are_whole(run)
        assert main(["train", "new", "--resume"]) == 0
    else:
        assert_unchanged(before, workshop)
        assert main(shlex.split(NEW)) == 0


def test_a_corpus_that_may_not_grow_leaves_nothing(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(workshop / "corpora")
    before = tree(workshop)
    with file_size_limit(1000):
        assert main(shlex.split(NEW)) == 2
    assert_one_line(capsys.readouterr().err, ("could not be written",))
    assert_unchanged(before, workshop)
    assert main(shlex.split(NEW)) == 0


def test_a_read_only_disk_is_one_line(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A read-only mount refuses root as well, which permission bits do not."""
    mount("--bind", str(workshop / "runs"), at=workshop / "runs")
    try:
        mount("-o", "remount,bind,ro", at=workshop / "runs")
        before = tree(workshop)
        assert main(shlex.split(NEW)) == 2
        assert_one_line(capsys.readouterr().err, ("Read-only", "Choose another folder"))
        assert main(shlex.split("train tiny --resume --train.steps 6")) == 2
        assert_one_line(capsys.readouterr().err, ("Read-only", "Choose another folder"))
        assert_unchanged(before, workshop)
        assert main(shlex.split("sample tiny --tokens 3")) == 0
    finally:
        subprocess.run(["umount", "--lazy", str(workshop / "runs")], check=True)


def test_a_folder_without_permission_is_one_line(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("permission bits do not bind root; the read-only mount and the file in the way do")
    (workshop / "runs").chmod(0o555)
    try:
        before = tree(workshop)
        assert main(shlex.split(NEW)) == 2
        assert_one_line(capsys.readouterr().err, ("Permission denied", "Choose another folder"))
        assert_unchanged(before, workshop)
    finally:
        (workshop / "runs").chmod(0o755)
