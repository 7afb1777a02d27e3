"""What the benchmarks share: a figure is never taken for that of another run."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from bonsaigpt.config import RunConfig, derive, validate

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch):
    """``benchmarks/alone.py``, whose trainings come to a figure of their own at once, and here."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import alone

    yield alone
    for name in ("alone", "common"):
        sys.modules.pop(name, None)


def config(text: Path, **changes: object) -> RunConfig:
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}
    data = {"kind": "files", "path": str(text)}
    return validate({"model": model, "data": data, "train": {"steps": 2, "threads": 1}, **changes}, origin="test")


def trained(alone, monkeypatch: pytest.MonkeyPatch, runs: dict[str, RunConfig], folder: Path) -> list[str]:
    """The names of those that were trained, and not found in the ledger."""
    names: list[str] = []

    class Here:
        """A pool that runs what it is given at once."""

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *error: object) -> None: ...

        def submit(self, work, config: RunConfig, corpora: Path):
            future: Future[object] = Future()
            names.append(next(name for name, run in runs.items() if run is config))
            future.set_result(alone.Trained(1, 2, float(len(names))))
            return future

    monkeypatch.setattr(alone, "ProcessPoolExecutor", lambda *_, **__: Here())
    found = alone.train_all(runs, folder / "done.jsonl", corpora=folder / "corpora", processes=1)
    assert found.keys() == runs.keys()
    return names


def test_a_variant_that_was_edited_is_trained_anew(
    alone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_text: Path
) -> None:
    base = config(tiny_text)
    runs = {"base": base, "wide": derive(base, model={"n_embd": 32})}
    assert trained(alone, monkeypatch, runs, tmp_path) == ["base", "wide"]
    assert trained(alone, monkeypatch, runs, tmp_path) == []
    edited = runs | {"wide": derive(base, model={"n_embd": 64})}
    assert trained(alone, monkeypatch, edited, tmp_path) == ["wide"]
    assert trained(alone, monkeypatch, {"by another name": runs["wide"]}, tmp_path) == []
    assert trained(alone, monkeypatch, {"base": derive(base, data={"order": "random"})}, tmp_path) == ["base"]
    moved = tmp_path / "moved.txt"
    moved.write_text(tiny_text.read_text())
    assert trained(alone, monkeypatch, {"base": derive(base, data={"path": str(moved)})}, tmp_path) == []
    moved.write_text(tiny_text.read_text() + "more of it\n")
    assert trained(alone, monkeypatch, {"base": derive(base, data={"path": str(moved)})}, tmp_path) == ["base"]
