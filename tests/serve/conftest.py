"""A live server on loopback, with a model so small that its speed is that of HTTP."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="pip install 'bonsaigpt[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'bonsaigpt[serve]'")

from bonsaigpt.cli import main
from bonsaigpt.cli.common import open_model
from bonsaigpt.engines import load_engine
from bonsaigpt.generate.dialogue import Template
from bonsaigpt.serve import Limits, Models, Served
from bonsaigpt.serve.app import make_app
from bonsaigpt.serve.server import LOOPBACK, bind, make_server

LIMITS = Limits(rows=4, queue=4, tokens=300, prompt=600, body=20_000, seconds=20, body_seconds=0.5, header_seconds=0.5)


@dataclass(frozen=True)
class Live:
    """A server that runs."""

    url: str
    port: int


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_flags: list[str]) -> Path:
    """Two runs: ``letters`` has 18 characters, ``bytes`` all bytes."""
    root = tmp_path_factory.mktemp("serve")
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
        for name, kind in (("letters", "chars"), ("bytes", "bytes")):
            flags = ["--data.path", str(tiny_text), "--data.tokenizer.kind", kind, "--model.position.kind", "rope"]
            few = [
                "--train.steps",
                "30",
                "--train.sample_tokens",
                "0",
                "--optim.lr",
                "0.01",
                "--model.block_size",
                "32",
            ]
            assert main(["train", "my-text", "--name", name, *tiny_flags, *flags, *few]) == 0
    return root / "runs"


def served(runs: Path, name: str) -> Served:
    opened = open_model(str(runs / name))
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    return Served(
        name=name,
        config=opened.config,
        tokenizer=opened.tokenizer,
        engine=engine,
        model=engine.model(opened.config, opened.weights),
        created=0,
        parameters=1,
    )


@contextlib.contextmanager
def live(
    runs: Path, limits: Limits = LIMITS, *, names: tuple[str, ...] = ("letters", "bytes"), **more
) -> Iterator[Live]:
    """A server in a thread of its own."""
    models = Models([served(runs, name) for name in names], rows=limits.rows)
    app = make_app(models, limits, Template(), **({"hosts": LOOPBACK} | more))
    server = make_server(app, limits)
    listening = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = listening.getsockname()[1]
        yield Live(f"http://127.0.0.1:{port}", port)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def server(runs: Path) -> Iterator[Live]:
    with live(runs) as running:
        yield running
