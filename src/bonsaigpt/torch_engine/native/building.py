"""Build the C++ of this folder once and keep it, as quietly as a file that came with the package.

The result lies in the user's cache under a name that says all it depends on: sources, flags, compiler and processor
(``-march=native``), and what is in it: a damaged library would kill whoever loads it. It is written aside and renamed,
so that processes that build at once do not disturb each other.
That there is no compiler is no error: whoever asks is told why there is no library and goes on without.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["Missing", "build_count", "cache_folder", "is_built", "load_library"]

_SOURCES = {
    name: (Path(__file__).parent / name).read_bytes()
    for name in ("decode.cpp", "codes.h", "pool.h", "products.h", "vectors.h")
}
"""Read with this module: what is built later fits the structures of ``library.py`` as they were imported, whoever may
update the files under a run that has not sampled yet."""
_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", "-w")
_TUNED = ("-march=native", "-mcpu=native", "")
"""For this very processor; compilers that do not know one of these may know the next."""
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 300
"""After so long a compiler is taken for broken; a busy machine needs a minute."""

_ASIDE = ".build-"

_builds = 0
_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL] = {}


class Missing(Exception):
    """There is no library; the message says why in a few words."""


def build_count() -> int:
    """How often this process has run a compiler to the end."""
    return _builds


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where built libraries are kept: ``$XDG_CACHE_HOME/bonsai``, or ``~/.cache/bonsai``."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bonsai"


def is_built() -> bool:
    """Whether ``load_library`` would come back at once.

    Raises:
        Missing: there is no compiler, so nothing that one has built is looked for.
    """
    name = _name(_compiler())
    return name in _loaded or bool(_kept(name))


def load_library() -> ctypes.CDLL:
    """The library, built now if it was not before: some seconds.

    Raises:
        Missing: there is no compiler, it fails, or what it made cannot be loaded.
    """
    compiler = _compiler()
    name = _name(compiler)
    with _lock:
        if name not in _loaded:
            for path in _kept(name):
                with suppress(OSError):  # not ours to read; of a disk that another kind of machine shares
                    if _hash(path) == path.stem.rpartition("-")[2]:
                        _loaded[name] = ctypes.CDLL(str(path))
            if name not in _loaded:
                _loaded[name] = _build(compiler, name)
        return _loaded[name]


def _compiler() -> tuple[str, ...]:
    """The command of a C++ compiler: $CXX, or the first that is found."""
    named = os.environ.get("CXX")
    try:
        asked = tuple(shlex.split(named or ""))
    except ValueError as error:
        raise Missing(f"$CXX is no command ({error})") from None
    for words in [asked] if named else [(name,) for name in _COMPILERS]:
        if words and shutil.which(words[0]):
            return words
    raise Missing(f"there is no compiler '{named}' ($CXX)" if named else "there is no C++ compiler")


def _name(compiler: tuple[str, ...]) -> str:
    """What all libraries built from these sources, by this compiler, for this processor are called."""
    sources = hashlib.sha256(b"".join(_SOURCES.values())).hexdigest()
    key = (sources, _flags(compiler), _TUNED, compiler, _version(compiler), _processor(), platform.machine())
    return f"decode-{hashlib.sha256(repr(key).encode()).hexdigest()[:20]}"


def _kept(name: str) -> list[Path]:
    """Such libraries in the cache."""
    with suppress(OSError):  # a folder that we may not enter
        return sorted(cache_folder().glob(f"{name}-*.so"))
    return []


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


@cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{compiler[0]} does not run ({type(error).__name__})") from None
    if done.returncode:
        raise Missing(f"{compiler[0]} does not run (exit code {done.returncode})")
    return done.stdout.decode("utf-8", "replace")


@cache
def _processor() -> str:
    """Model and instructions, as far as the system tells: a cache may lie on a disk that several machines share."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told = {line.partition(":")[0].strip(): line for line in reversed(lines)}
        return "\n".join(told.get(name, "") for name in ("model name", "flags", "Features", "CPU part"))
    return platform.processor()


def _build(compiler: tuple[str, ...], name: str) -> ctypes.CDLL:
    """Compile into the cache and load; where that cannot be written, in a folder that is gone when we return."""
    global _builds
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        folder, kept = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=cache)), True
    except OSError:
        folder, kept = Path(tempfile.mkdtemp(prefix=_ASIDE)), False
    try:
        made = folder / f"{name}.so"
        _compile(compiler, made)
        _builds += 1
        if kept:
            damaged = _kept(name)
            made = made.rename(cache / f"{name}-{_hash(made)}.so")
            for path in damaged:
                if path != made:
                    path.unlink(missing_ok=True)
        return ctypes.CDLL(str(made))  # once loaded it needs no file
    except OSError as error:
        raise Missing(f"what {compiler[0]} built cannot be used ({error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flags(compiler: tuple[str, ...]) -> tuple[str, ...]:
    """Clang has a word of its own for contraction that a pragma may forbid, as that of ``codes.h`` does."""
    fast = "-ffp-contract=fast"
    clang = "clang" in _version(compiler).lower()
    return tuple(f"{fast}-honor-pragmas" if clang and flag == fast else flag for flag in _FLAGS)


def _compile(compiler: tuple[str, ...], made: Path) -> None:
    for name, text in _SOURCES.items():
        (made.parent / name).write_bytes(text)
    words = ""
    for tuned in _TUNED:
        flags = [*_flags(compiler), *filter(None, [tuned])]
        command = [*compiler, *flags, str(made.parent / "decode.cpp"), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Missing(f"{compiler[0]} took more than {_SECONDS} s") from None
        if done.returncode == 0 and made.exists():
            return
        words = words or done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
    raise Missing(f"{compiler[0]} failed" + (f" ({words})" if words else ""))


def _sweep(folder: Path) -> None:
    """Delete what killed processes left."""
    for left in folder.glob(f"{_ASIDE}*"):
        if time.time() - left.stat().st_mtime > len(_TUNED) * _SECONDS:
            shutil.rmtree(left, ignore_errors=True)
