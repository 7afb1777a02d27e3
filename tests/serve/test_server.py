"""What a server does with clients that are many, slow, gone, hostile or strangers; and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="pip install httpx")

from starlette.testclient import TestClient  # noqa: E402

import bonsaigpt  # noqa: E402
from bonsaigpt.cli import main  # noqa: E402
from bonsaigpt.cli.serve import _measured  # noqa: E402
from bonsaigpt.errors import OutputError  # noqa: E402
from bonsaigpt.generate import Request as GenerateRequest  # noqa: E402
from bonsaigpt.generate import Session  # noqa: E402
from bonsaigpt.serve import Models  # noqa: E402
from bonsaigpt.serve.metrics import Metrics  # noqa: E402
from bonsaigpt.serve.server import bind, make_server  # noqa: E402
from bonsaigpt.serve.worker import Job, Worker  # noqa: E402
from tests.serve.conftest import LIMITS, Live, live, served  # noqa: E402

ENDLESS: dict[str, Any] = {"model": "letters", "prompt": "the", "max_tokens": 1_000_000, "stream": True}

HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@pytest.fixture
def http(server: Live):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def texts(client: Any) -> int:
    """Texts at work or waiting."""
    found = re.search(r"^bonsai_texts (\d+)", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def until(what: Any, *, seconds: float = 10) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_no_room_is_429_and_a_client_that_leaves_frees_its_row(runs: Path) -> None:
    limits = replace(LIMITS, rows=1, queue=1, tokens=1_000_000)
    with live(runs, limits, names=("letters",)) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        with client.stream("POST", "/v1/completions", json=ENDLESS) as first:
            coming = first.iter_bytes()  # held: collected, it would close the connection
            next(coming)
            # The one that waits has had no answer yet: that it leaves must be noticed as well.
            waits = socket.create_connection(("127.0.0.1", server.port))
            body = json.dumps(ENDLESS).encode()
            waits.sendall(HEAD % len(body) + body)
            until(lambda: texts(client) == 2)
            full = client.post("/v1/completions", json=ENDLESS | {"stream": False})
            assert full.status_code == 429
            assert int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["type"] == "rate_limit_error"
            waits.close()
            until(lambda: texts(client) == 1)
        until(lambda: texts(client) == 0)
        small = client.post("/v1/completions", json=ENDLESS | {"stream": False, "max_tokens": 3})
        assert small.status_code == 200
        assert "bonsai_gone_total 2" in client.get("/metrics").text


def test_what_takes_too_long_ends(runs: Path) -> None:
    limits = replace(LIMITS, tokens=1_000_000, seconds=0.3)
    with live(runs, limits, names=("letters",)) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        whole = client.post("/v1/completions", json=ENDLESS | {"stream": False})
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "timeout")
        streamed = client.post("/v1/completions", json=ENDLESS).text
        assert json.loads(streamed.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: texts(client) == 0)


def test_a_fault_of_ours_costs_the_texts_at_work_and_no_more(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step = Session.step
    faults = [RuntimeError("made up")]

    def faulty(self: Session) -> Any:
        if faults:
            raise faults.pop()
        return step(self)

    with live(runs, names=("letters",)) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        monkeypatch.setattr(Session, "step", faulty)
        body = ENDLESS | {"stream": False, "max_tokens": 3}
        lost = client.post("/v1/completions", json=body)
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "lost")
        assert "made up" not in lost.text
        assert client.post("/v1/completions", json=body).status_code == 200
        until(lambda: texts(client) == 0)
    assert "made up" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"model": "letters", "prompt": "\xff\xfe"}', 400),
        (b'{"model": "letters", "prompt": "\\ud800"}', 400),
        (b'{"model": "letters", "temperature": NaN}', 400),
        (b'{"model": "letters", "seed": 1e400}', 400),
        (b'{"model": "letters", "max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
        (b'{"a": ' * 3000 + b"1" + b"}" * 3000, 413),
        (b'{"model": "../../etc/passwd"}', 404),
        (b'{"model": "letters", "prompt": "' + b"a" * 30_000 + b'"}', 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_bad_bodies(http: Any, path: str, body: bytes, status: int) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    if path.endswith("chat/completions") and status == 404:
        status = 400  # there are no messages
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text


@pytest.mark.parametrize(
    "path",
    ["/v1/models/../../etc/passwd", "/..%2f..%2fetc/passwd", "/v1/models/%00", "/v1//", "/v1/models/" + "a" * 9000],
)
def test_odd_paths(http: Any, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert len(answer.text) < 500
    assert "root:" not in answer.text


def raw(server: Live, data: bytes, *, wait: float = 5) -> bytes:
    """Send bytes and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(wait)
        connection.sendall(data)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def test_slow_senders_are_shown_out(server: Live) -> None:
    assert raw(server, b"") == b""
    assert raw(server, b"POST /v1/completions HT") == b""
    answer = raw(server, HEAD % 50 + b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"too_slow" in answer
    assert raw(server, b"\x16\x03\x01 no HTTP \r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_only_json_is_read_and_only_by_the_servers_name(http: Any) -> None:
    body = json.dumps({"model": "letters", "prompt": "the"})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):  # what any web page may send anywhere
        assert http.post("/v1/completions", content=body, headers={"content-type": kind}).status_code == 415
    assert http.get("/health", headers={"host": "evil.example:8000"}).status_code == 421
    assert http.get("/health", headers={"host": "localhost:1"}).json() == {"status": "ok"}
    allowed = http.options("/v1/completions", headers={"origin": "https://evil.example"})
    assert allowed.status_code == 405
    assert not [name for name in allowed.headers if name.startswith("access-control")]


def test_a_key_opens_all_but_health(runs: Path) -> None:
    with (
        live(runs, names=("letters",), key="correct horse", hosts=None) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        get = client.get
        assert get("/health").status_code == 200
        for shown in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic correct horse"}):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                assert get(path, headers=shown).status_code == 401
        assert get("/v1/models", headers={"authorization": "Bearer correct horse"}).status_code == 200
        assert get("/health", headers={"host": "models.example"}).status_code == 200


def test_many_texts_at_once_are_each_what_they_are_alone(http: Any) -> None:
    """More clients than rows: what waits and what runs beside it changes nothing."""

    def write(seed: int, **more: Any) -> str:
        asked = {"model": "bytes", "prompt": "the cat", "max_tokens": 60, "seed": seed, "ignore_eos": True}
        return http.post("/v1/completions", json=asked | more).json()["choices"][0]["text"]

    alone = {seed: write(seed) for seed in range(8)}
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda s=seed: found.update({s: write(s)})) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert len(set(alone.values())) == 8


def test_an_address_that_cannot_be_says_so(server: Live) -> None:
    with pytest.raises(OutputError, match=r"Address already in use\. Choose another"):
        bind("127.0.0.1", server.port)
    with pytest.raises(OutputError, match="no port 99999"):
        bind("127.0.0.1", 99_999)
    with pytest.raises(OutputError, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)  # of documentation (RFC 5737), nobody's


@pytest.mark.parametrize(("name", "refused"), [("127.0.0.2", False), ("evil.example", True)])
def test_the_verb_answers_to_the_address_that_it_was_given(
    runs: Path, monkeypatch: pytest.MonkeyPatch, name: str, refused: bool
) -> None:
    made: list[Any] = []

    def leaving(app: Any, limits: Any, **options: Any) -> Any:
        made.append(app)
        server = make_server(app, limits, **options)
        server.should_exit = True
        return server

    monkeypatch.setattr("bonsaigpt.serve.server.make_server", leaving)
    monkeypatch.delenv("BONSAI_API_KEY", raising=False)
    place = ["letters", "--runs", str(runs), "--host", "127.0.0.2", "--port", "0", "--device", "cpu"]
    assert main(["serve", *place]) == 0
    answer = TestClient(made[0], base_url=f"http://{name}:8000").get("/health")
    assert (answer.status_code == 421) == refused


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("model,policy,bits_per_token,added,frontier\na,int8,64,0.01,1\na,int4,32,1,0\nb,int3,24,0,1\n", ["int8"]),
        ("policy,bits_per_token,added,frontier\nint8,64,0.01,1\n", ["int8"]),
        ("policy,frontier\nint8,1\n", []),
        ("policy,bits,solved,lost\nint8,64,1,0\n", []),
        ("", []),
    ],
)
def test_measured_policies_are_the_models_own(tmp_path: Path, table: str, found: list[str]) -> None:
    (tmp_path / "kv.csv").write_text(table)
    assert list(_measured(tmp_path / "kv.csv")) == found


def test_a_late_end_of_a_lost_text_ends_no_other(runs: Path) -> None:
    """A session that was lost is made anew and counts from 0 again."""
    models = Models([served(runs, "letters")], rows=2)
    worker = Worker(models, models.warm(), LIMITS, Metrics())
    key = ("letters", "")
    lost, other = (Job(key, [GenerateRequest(prompt=[1], max_tokens=5)]) for _ in range(2))
    worker._add(lost)
    worker._drop(key)
    worker._jobs.clear()
    worker._add(other)
    assert lost.numbers == other.numbers
    worker._cancel(lost)
    assert worker._session(key).busy
    assert [event.finish for event in worker._session(key).step()] == [None]
    worker._cancel(other)
    assert [event.finish for event in worker._session(key).step()] == ["cancelled"]


def test_metrics_and_description(http: Any) -> None:
    http.post("/v1/completions", json={"model": "letters", "prompt": "the", "max_tokens": 3})
    text = http.get("/metrics").text
    assert 'bonsai_requests_total{route="/v1/completions",status="200"}' in text
    assert re.search(r"^bonsai_tokens_total [1-9]", text, re.MULTILINE)
    assert text.count("# TYPE ") == text.count("# HELP ")
    described = http.get("/openapi.json").json()
    assert set(described["paths"]) >= {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics"}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert references <= set(described["components"]["schemas"])


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],  # slow: a process imports torch
)
def test_a_signal_lets_what_runs_finish(runs: Path, number: signal.Signals) -> None:
    source = str(Path(bonsaigpt.__file__).parents[1])
    command = [sys.executable, "-m", "bonsaigpt", "serve", "runs/letters", "--port", "0", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    with subprocess.Popen(command, cwd=runs.parent, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        url = re.findall(r"http://[\d.:]+", next(line for line in process.stderr if "http://" in line))[0]
        asked = ENDLESS | {"max_tokens": 3000, "seed": 1}
        with httpx.Client(base_url=url, timeout=60) as client:
            with client.stream("POST", "/v1/completions", json=asked) as told:
                lines = told.iter_lines()
                next(lines)
                process.send_signal(number)
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert len(rest) > 2000  # most of it came after the signal
            assert process.wait(timeout=30) in (130, -number)
            with pytest.raises(httpx.ConnectError):
                client.get("/health")
        told = process.stderr.read()
        assert "finishing 1 text, for 120 s at most; another Ctrl-C drops what is left" in told
        assert "Traceback" not in told
