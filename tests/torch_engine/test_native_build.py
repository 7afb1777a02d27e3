"""The C++ is built once, quietly, whatever the machine is like; where it cannot be, decoding goes on without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.sampling import Chooser, Sampling
from bonsaigpt.torch_engine.decode import make_decoder
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.native import building
from bonsaigpt.torch_engine.native.decoder import NativeDecoder
from tests.torch_engine.decoders import CPU, make, model_of

QUICK_COMPILER = """#!{python}
import os, shutil, sys
if "--version" in sys.argv:
    print("quick 1.0")
    sys.exit(0)
with open({log!r}, "a") as log:
    log.write("called\\n")
{work}
shutil.copy({library!r}, sys.argv[sys.argv.index("-o") + 1])
"""
"""Stands in for a compiler that takes seconds: it copies what the true one has made."""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing loaded."""
    make("native", model_of("gpt2"))  # or this test is skipped
    monkeypatch.setattr(building, "_loaded", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    building._version.cache_clear()


@pytest.fixture
def built(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library in the user's own cache."""
    with monkeypatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME")
        if "XDG_CACHE_HOME" in ORIGINAL:
            patch.setenv("XDG_CACHE_HOME", ORIGINAL["XDG_CACHE_HOME"])
        return building._kept(building._name(building._compiler()))[0]


ORIGINAL = dict(os.environ)


def compiler(fresh: Path, built: Path, work: str = "") -> tuple[str, Path]:
    """A command for $CXX, and the file in which it notes its calls."""
    log, script = fresh / "log", fresh / "quick-c++"
    script.write_text(QUICK_COMPILER.format(python=sys.executable, log=str(log), library=str(built), work=work))
    script.chmod(0o755)
    return str(script), log


def test_it_is_built_once_and_then_loaded(fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, log = compiler(fresh, built)
    monkeypatch.setenv("CXX", command)
    before = building.build_count()
    assert not building.is_built()
    told: list[str] = []
    make_decoder(model_of("gpt2"), rows=1, placement=CPU, tokens=10, say=told.append)
    assert not told, "ten tokens do not pay for a build"
    first = building.load_library()
    assert building.is_built()
    assert building.load_library() is first
    make_decoder(model_of("gpt2"), rows=1, placement=CPU, say=told.append)
    assert not told, "it is built"
    monkeypatch.setattr(building, "_loaded", {})  # as another process
    building.load_library()
    assert building.build_count() == before + 1
    assert log.read_text() == "called\n"
    assert [file.suffix for file in (fresh / "cache" / "bonsai").iterdir()] == [".so"]


def test_nothing_is_built_again_for_other_prompts_temperatures_seeds_and_rows() -> None:
    make("native", model_of("gpt2"))
    before = building.build_count()
    for name, rows in (("gpt2", 1), ("modern", 3)):
        decoder = make_decoder(model_of(name), rows=rows, placement=CPU)
        assert isinstance(decoder, NativeDecoder)
        for seed, temperature, length in ((0, 0.0, 1), (1, 0.7, 5), (2, 1.3, 9)):
            decoder.truncate(0, 0)
            logits = decoder.prefill(0, np.arange(length))
            chooser = Chooser(
                Sampling(seed=seed, temperature=temperature), prompt=np.arange(length), vocab_size=len(logits)
            )
            for position in range(length, length + 4):
                token = chooser.choose(logits, position=position)
                [logits] = decoder.step(np.array([0]), np.array([token]))
    assert building.build_count() == before


def test_another_compiler_flag_or_source_is_another_library(
    fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = building._compiler()
    here = building._name(command)
    assert building._name(command) == here
    with monkeypatch.context() as patch:
        patch.setattr(building, "_FLAGS", (*building._FLAGS, "-g"))
        assert building._name(command) != here
    with monkeypatch.context() as patch:
        patch.setattr(building, "_processor", lambda: "another")
        assert building._name(command) != here
    with monkeypatch.context() as patch:
        patch.setitem(building._SOURCES, "pool.h", b"")
        assert building._name(command) != here


def test_what_is_built_late_is_of_the_sources_that_were_imported(tmp_path: Path) -> None:
    """A run that samples only after the package was updated once called new C++ with old structures, and died."""
    package = shutil.copytree(Path(building.__file__).parent, tmp_path / "native")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import building
before = building._name(("c++",))
building.Path(sys.argv[1], "decode.cpp").write_text("#error of tomorrow")
assert building._name(("c++",)) == before
building.load_library().bonsai_most_tokens()
print("fine")
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code, str(package)], env=environment, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


def test_processes_that_build_at_once_do_not_disturb_each_other(
    fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, log = compiler(fresh, built, work="import time; time.sleep(0.5)")
    code = (
        "from bonsaigpt.torch_engine.native.building import load_library as l; l().bonsai_most_tokens(); print('fine')"
    )
    environment = os.environ | {"CXX": command}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == [b"fine\n", b"fine\n"]
    assert log.read_text().count("called") == 2  # or they were not at it at once
    assert [file.suffix for file in (fresh / "cache" / "bonsai").iterdir()] == [".so"]


@pytest.mark.parametrize(
    ("cxx", "words"),
    [
        ("false", "false does not run"),
        ("no-such-compiler", "no compiler 'no-such-compiler'"),
        ("g++ '", "no command"),
        ("broken", "failed (it is broken)"),
        ("liar", "cannot be used"),
        (None, "no C++ compiler"),
    ],
)
def test_without_a_compiler_that_works_it_goes_on_eagerly_and_says_why(
    fresh: Path,
    cxx: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = "#!/bin/sh\ncase $1 in --version) exit 0;; esac\n"
    ends = {"broken": "echo it is broken >&2; exit 1\n", "liar": 'for last; do :; done; echo junk > "$last"\n'}
    for name, end in ends.items():
        (fresh / name).write_text(script + end)
        (fresh / name).chmod(0o755)
    if cxx is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(fresh / "nothing"))
    else:
        monkeypatch.setenv("CXX", str(fresh / cxx) if cxx in ends else cxx)
    decoder = make_decoder(model_of("gpt2"), rows=1, placement=CPU)
    assert isinstance(decoder, EagerDecoder)
    assert words in decoder.why
    if "compiler" in words or "command" in words:  # that is the reason, however few tokens there are
        assert words in make_decoder(model_of("gpt2"), rows=1, placement=CPU, tokens=20).why
    assert decoder.prefill(0, np.array([1, 2])).shape == (17,)
    assert capfd.readouterr() == ("", "")


def test_a_cache_that_cannot_be_written_costs_a_build_a_process(
    fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, log = compiler(fresh, built)
    monkeypatch.setenv("CXX", command)
    (fresh / "cache").write_text("a file is in the way")
    assert isinstance(make_decoder(model_of("gpt2"), rows=1, placement=CPU), NativeDecoder)
    assert isinstance(make_decoder(model_of("gpt2"), rows=1, placement=CPU), NativeDecoder)
    assert log.read_text() == "called\n"


def test_a_cache_that_may_not_be_entered_costs_a_build_a_process(
    fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*words: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    command, log = compiler(fresh, built)
    monkeypatch.setenv("CXX", command)
    for name in ("glob", "mkdir"):  # whoever runs the tests as root may enter everything
        monkeypatch.setattr(Path, name, forbidden)
    for _ in range(2):
        assert isinstance(make_decoder(model_of("gpt2"), rows=1, placement=CPU), NativeDecoder)
    assert log.read_text() == "called\n"


def test_a_damaged_library_is_built_again(fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a file that was cut short ends the process by a signal."""
    command, log = compiler(fresh, built)
    monkeypatch.setenv("CXX", command)
    make_decoder(model_of("gpt2"), rows=1, placement=CPU)
    [kept] = (fresh / "cache" / "bonsai").iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # this process has the file in use
    kept.write_bytes(whole[:20000])
    monkeypatch.setattr(building, "_loaded", {})
    assert isinstance(make_decoder(model_of("gpt2"), rows=1, placement=CPU), NativeDecoder)
    assert log.read_text() == "called\ncalled\n"
    assert [file.read_bytes() == whole for file in (fresh / "cache" / "bonsai").iterdir()] == [True]


def test_few_tokens_do_not_pay_for_a_build(fresh: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, log = compiler(fresh, built)
    monkeypatch.setenv("CXX", command)
    few = make_decoder(model_of("gpt2"), rows=1, placement=CPU, tokens=20)
    assert "20 tokens do not pay" in few.why
    assert not log.exists()
    assert isinstance(make_decoder(model_of("gpt2"), rows=1, placement=CPU, tokens=2000), NativeDecoder)
    assert isinstance(make_decoder(model_of("gpt2"), rows=1, placement=CPU, tokens=20), NativeDecoder)  # it is there


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of what this is about
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # so does JAX, where an earlier test has started it
def test_a_forked_child_ends_without_the_helpers_that_it_does_not_have() -> None:
    decoder = make("native", model_of("modern", n_embd=256, n_layer=5), threads=2)
    decoder.prefill(0, np.arange(9))
    code = os.fork()
    if code == 0:
        decoder.step(np.array([0]), np.array([1]))
        decoder._closing()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(code, 0)[1]) == 7


def test_the_sources_travel_with_the_package() -> None:
    folder = files("bonsaigpt.torch_engine.native")
    for name in building._SOURCES:
        assert folder.joinpath(name).is_file()
    included = {
        line.split('"')[1] for line in folder.joinpath("decode.cpp").read_text().splitlines() if '#include "' in line
    }
    assert included | {"decode.cpp"} == set(building._SOURCES)  # what the key must cover
