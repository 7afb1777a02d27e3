"""The pool: so many at once and no more, honest reasons of failure, and nothing left running whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bonsaigpt.errors import OutputError
from bonsaigpt.files import lock
from bonsaigpt.study.pool import ProcessPool, Work, failure, run_all

if os.name != "posix":
    pytest.skip("signals are sent as POSIX does", allow_module_level=True)


@dataclass(frozen=True)
class Script:
    """Some Python in a process of its own."""

    name: str
    code: str
    log: Path

    @property
    def command(self) -> Sequence[str]:
        return [sys.executable, "-S", "-c", self.code]

    def __call__(self) -> int:
        raise NotImplementedError


def scripts(folder: Path, *codes: str) -> list[Script]:
    return [Script(str(i), code, folder / f"{i}.log") for i, code in enumerate(codes)]


def execute(works: Sequence[Work], *, at_once: int = 2) -> tuple[str | None, dict[str, tuple[int, bool]], int]:
    """What stopped it, code and asked of each, and how many ran at once at most."""
    ends: dict[str, tuple[int, bool]] = {}
    most = 0

    def follow(running: Sequence[Work]) -> None:
        nonlocal most
        most = max(most, len(running))

    def on_end(work: Work, code: int, asked: bool) -> None:
        ends[work.name] = code, asked

    stopped = run_all(works, ProcessPool(), at_once=at_once, on_end=on_end, follow=follow, interval=0.02)
    return stopped, ends, most


def test_all_run_and_so_many_at_once(tmp_path: Path) -> None:
    pause = "import time; time.sleep(0.15); print('said')"
    works = scripts(tmp_path, pause, pause, pause, pause, "raise SystemExit(3)")
    stopped, ends, most = execute(works, at_once=3)
    assert stopped is None
    assert ends == {"0": (0, False), "1": (0, False), "2": (0, False), "3": (0, False), "4": (3, False)}
    assert most == 3
    assert (tmp_path / "0.log").read_text() == "said\n"


def test_reasons(tmp_path: Path) -> None:
    works = scripts(
        tmp_path,
        "import sys; print('bonsai: the cause'); print('later words'); sys.exit(2)",
        "raise ValueError('odd')",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os._exit(7)",
    )
    _, ends, _ = execute(works)
    assert [failure(ends[w.name][0], w.log) for w in works] == [
        "the cause",
        "ValueError: odd",
        "killed by SIGKILL: the machine may have run out of memory",
        "exit code 7",
    ]


POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_leave_and_starts_no_more(tmp_path: Path, number: signal.Signals) -> None:
    works = scripts(tmp_path, POLITE, POLITE, POLITE)

    def send() -> None:
        until(lambda: all(w.log.exists() and "ready" in w.log.read_text() for w in works[:2]))
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    began = time.monotonic()
    stopped, ends, _ = execute(works)
    assert time.monotonic() - began < 30
    assert stopped == number.name
    assert ends == {"0": (143, True), "1": (143, True)}
    assert not works[2].log.exists()


def test_the_second_ctrl_c_kills(tmp_path: Path) -> None:
    stubborn = POLITE.replace("lambda *_: sys.exit(143)", "signal.SIG_IGN").replace(
        "'ready'", "__import__('os').getpid()"
    )
    [work] = scripts(tmp_path, stubborn)

    def send() -> None:
        until(lambda: work.log.exists() and work.log.read_text().strip().isdecimal())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()
    with pytest.raises(KeyboardInterrupt):
        execute([work])
    assert not alive(int(work.log.read_text()))


def test_standard_input_ends_when_the_one_who_started_it_is_killed(tmp_path: Path) -> None:
    """So a run hears of it and leaves; the control, without our end of the pipe, lives on."""
    child = "import os, pathlib; print(os.getpid(), flush=True); os.read(0, 1); pathlib.Path({!r}).write_text('heard')"
    heard = tmp_path / "heard"
    [work] = scripts(tmp_path, child.format(str(heard)))
    parent = (
        f"import sys, pathlib; sys.path[:0] = {[str(Path(__file__).parents[2]), *sys.path]!r}\n"
        "from tests.study.test_pool import Script, execute\n"
        f"execute([Script('0', {work.code!r}, pathlib.Path({str(work.log)!r}))])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        until(lambda: work.log.exists() and work.log.read_text().strip().isdecimal())
        time.sleep(0.2)
        assert not heard.exists()
    finally:
        process.kill()
        process.wait()
    until(heard.exists)


def test_a_lock_is_for_one_and_ends_with_its_holder(tmp_path: Path) -> None:
    with lock(tmp_path, wait=False), pytest.raises(OutputError, match="another process"), lock(tmp_path, wait=False):
        pass
    holder = (
        "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process"), lock(tmp_path, wait=False):
            pass
        threading.Timer(0.2, process.kill).start()
        with lock(tmp_path, wait=True):
            assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


def until(true: object) -> None:
    limit = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
