"""`bonsai serve` under load, and under attack: two things that one machine can do to another, here over loopback.

``load``: many clients stream at once, again and again. Each text is held against what its request gives alone, and the
tokens a second against those of one client, in the same process and run. ``hostile``: thousands of requests that no
client should send, seeded; counted are statuses of 500 and more, and how much the server's memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from common import finish, guarded, machine, parser, positive, progress, show

import bonsaigpt
from bonsaigpt.errors import BonsaiError


@dataclass(frozen=True)
class Server:
    """The one that is measured."""

    port: int
    process: int
    started: float
    """Seconds from the command to the first answer, Python and torch included."""

    @property
    def work(self) -> float:
        """Seconds of a core that it took so far."""
        fields = Path(f"/proc/{self.process}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> float:
        """MB of it that are in memory."""
        status = Path(f"/proc/{self.process}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@dataclass
class Told:
    """What one streaming request came to."""

    first: float
    """Seconds to the first token."""
    tokens: int
    text: str
    finish: str | None = None


@dataclass(frozen=True)
class Made:
    """Tokens that came in so many seconds, and all of them with the seconds of a core that the server took for them."""

    tokens: int
    seconds: float
    all_tokens: int
    work: float

    def plus(self, other: Made) -> Made:
        """Both together."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Made(*(one + another for one, another in pairs))

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def by_work(self) -> float:
        """Tokens a second of a core."""
        return self.all_tokens / self.work


@dataclass
class Client:
    """Asks again and again for the same text, which is what tells a lost or mixed token."""

    body: dict[str, Any]
    told: list[Told] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    with _served(arguments.run, arguments.rows, arguments.queue) as server:
        figures = asyncio.run(_load(server, arguments) if arguments.what == "load" else _hostile(server, arguments))
    finish(
        {
            "benchmark": "serve_load",
            "what": arguments.what,
            "machine": machine(),
            "cold_start": server.started,
            **figures,
        }
    )


def _arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "python benchmarks/serve_load.py load runs/shakespeare-char")
    made.add_argument("what", choices=["load", "hostile"])
    made.add_argument("run", help="a run of a character model")
    made.add_argument("--prompt", default="\n", help="what texts begin with (default: a new line)")
    made.add_argument("--clients", type=positive, default=64, help="at once (default: 64)")
    made.add_argument("--seconds", type=float, default=60.0, help="of the load (default: 60)")
    made.add_argument("--alone", type=float, default=10.0, help="seconds of one client before and after (default: 10)")
    made.add_argument("--tokens", type=positive, default=150, help="of a text (default: 150)")
    made.add_argument("--texts", type=positive, default=64, help="different ones (default: 64)")
    made.add_argument("--rows", type=positive, default=64, help="of the server (default: 64)")
    made.add_argument("--queue", type=positive, default=64, help="of the server (default: 64)")
    made.add_argument("--requests", type=positive, default=10_000, help="hostile ones (default: 10,000)")
    return made.parse_args()


@contextmanager
def _served(run: str, rows: int, queue: int) -> Iterator[Server]:
    """`bonsai serve` in a process of its own, on a free port."""
    command = [sys.executable, "-m", "bonsaigpt", "serve", run, "--port", "0", "--device", "cpu"]
    command += ["--rows", str(rows), "--queue", str(queue)]
    environment = os.environ | {"PYTHONPATH": str(Path(bonsaigpt.__file__).parents[1])}
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)) is not None:
                break
        else:
            raise BonsaiError(f"the server did not start: {said.strip()}")
        try:
            yield Server(int(found[1]), process.pid, time.perf_counter() - began)
        finally:
            process.terminate()


def _head(path: str, length: int, *, method: str = "POST", kind: str = "application/json") -> bytes:
    lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return lines.encode("latin-1", errors="replace")


# ------------------------------------------------------------------ load


async def _load(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    bodies = [_body(server, arguments, seed) for seed in range(min(arguments.texts, arguments.clients))]
    alone: list[str] = []
    with progress("each text alone", len(bodies)) as advance:
        for body in bodies:
            alone.append((await _stream(server.port, body)).text)
            advance(len(alone), "")
    before = await _for(server, [Client(bodies[0])], arguments.alone)
    clients = [Client(bodies[number % len(bodies)]) for number in range(arguments.clients)]
    together = await _for(server, clients, arguments.seconds)
    after = await _for(server, [Client(bodies[0])], arguments.alone)
    texts = [(told, alone[number % len(alone)]) for number, client in enumerate(clients) for told in client.told]
    wrong = sum(told.text != expected for told, expected in texts)
    firsts = sorted(told.first for told, _ in texts)
    one = before.plus(after)
    ratio = together.rate / one.rate
    # On a machine that others use as well, seconds say how much of it was left over; work does not.
    by_work = together.by_work / one.by_work
    show(
        machine(),
        ["", "tokens a second", "tokens a second of a core"],
        [
            ["one client, before", f"{before.rate:,.0f}", f"{before.by_work:,.0f}"],
            ["one client, after", f"{after.rate:,.0f}", f"{after.by_work:,.0f}"],
            [f"{len(clients)} clients", f"{together.rate:,.0f}", f"{together.by_work:,.0f}"],
            ["times as many", f"{ratio:.1f}", f"{by_work:.1f}"],
            ["texts", f"{len(texts):,}", ""],
            ["of those not what they are alone", wrong, ""],
            ["s to the first token: median, p99", f"{_quantile(firsts, 0.5):.3f}, {_quantile(firsts, 0.99):.3f}", ""],
        ],
    )
    return {
        "one": asdict(one),
        "together": asdict(together),
        "ratio": ratio,
        "by_work": by_work,
        "texts": len(texts),
        "wrong": wrong,
        "first_median": _quantile(firsts, 0.5),
        "first_p99": _quantile(firsts, 0.99),
        "memory": server.memory,
    }


def _body(server: Server, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    name = Path(arguments.run).name
    asked = {"model": name, "prompt": arguments.prompt, "max_tokens": arguments.tokens, "seed": seed}
    return asked | {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}


async def _for(server: Server, clients: list[Client], seconds: float) -> Made:
    """What all clients got in so much time; each asks anew when its text is whole."""
    began, work = time.perf_counter(), server.work
    end = began + seconds
    counts = [0, 0]  # until the end, and after it

    def count(tokens: int) -> None:
        counts[time.perf_counter() >= end] += tokens

    async def go(client: Client) -> None:
        while time.perf_counter() < end:
            client.told.append(await _stream(server.port, client.body, count))

    await asyncio.gather(*(go(client) for client in clients))
    return Made(counts[0], seconds, sum(counts), server.work - work)


async def _stream(port: int, body: dict[str, Any], count: Callable[[int], None] = lambda tokens: None) -> Told:
    """One streaming request on a connection of its own; what it says is read when it is over."""
    data = json.dumps(body).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head("/v1/completions", len(data)) + data)
    parts: list[bytes] = []
    first = 0.0
    while not parts or not parts[-1].endswith(b"0\r\n\r\n"):
        part = await reader.read(1 << 16)
        if not part:
            break
        parts.append(part)
        count(part.count(b'"text":'))
        if not first and b"data: " in part:
            first = time.perf_counter() - began
    writer.close()
    whole = b"".join(parts)
    text, tokens = "", 0
    for line in re.findall(rb"data: (\{.*\})\n", whole):
        told = json.loads(line)
        for choice in told.get("choices", []):
            text += choice["text"]
        tokens = (told.get("usage") or {}).get("completion_tokens", tokens)
    if not whole.rstrip().endswith(b"0") or b"[DONE]" not in whole:
        text += " (torn)"
    return Told(first, tokens, text)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# ------------------------------------------------------------------ hostile


async def _hostile(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    name = Path(arguments.run).name
    statuses: Counter[str] = Counter()
    numbers = iter(range(arguments.requests))
    warm = arguments.requests // 10
    memory: list[float] = []
    began = time.perf_counter()
    with progress("requests", arguments.requests) as advance:

        async def go() -> None:
            for number in numbers:
                if number == warm:  # pools, caches and the allocator have their size now
                    memory.append(server.memory)
                statuses[await _attack(server.port, random.Random(number), name)] += 1
                advance(sum(statuses.values()), "")

        await asyncio.gather(*(go() for _ in range(16)))
    seconds = time.perf_counter() - began
    memory.append(server.memory)
    alive = await _stream(server.port, _body(server, arguments, 1))
    bad = {status: count for status, count in statuses.items() if status.startswith("5") and status != "503"}
    show(
        machine(),
        ["status", "requests"],
        [[status, f"{count:,}"] for status, count in sorted(statuses.items())]
        + [["seconds", f"{seconds:.0f}"], ["MB after a tenth, at the end", f"{memory[0]:.0f}, {memory[1]:.0f}"]],
    )
    return {
        "statuses": dict(statuses),
        "bad": bad,
        "memory": memory,
        "grown": memory[1] - memory[0],
        "seconds": seconds,
        "alive": alive.tokens == arguments.tokens,
    }


_PATHS = [
    "/v1/completions",
    "/v1/chat/completions",
    "/bonsai/read",
    "/bonsai/next",
    "/bonsai/write",
    "/bonsai/attention",
]
_TRICKS = [
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/v1/models/..%2f..%2f",
    "//",
    "/%00",
    "/v1/models/%ff",
    "/*",
]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    "9" * 400,
    [1e9],
]


async def _attack(port: int, rng: random.Random, name: str) -> str:
    """One request that should not be; its status, or what the server did instead of answering."""
    path = rng.choice(_PATHS)
    kind = rng.choice(
        ["wrong", "wrong", "wrong", "utf8", "deep", "long", "path", "method", "type", "gone", "slow", "raw"]
    )
    head, body = b"", _wrong(rng, name)
    if kind == "utf8":
        at = rng.randrange(len(body))
        body = body[:at] + rng.randbytes(rng.randint(1, 8)) + body[at:]
    elif kind == "deep":
        depth = rng.choice([100, 10_000, 200_000])
        body = rng.choice([b"[" * depth, b'{"a":' * depth, b'{"prompt":' + b"[" * depth + b"]" * depth + b"}"])
    elif kind == "long":
        body = b'{"model":"' + b"a" * rng.choice([10_000, 900_000, 1_100_000, 3_000_000]) + b'"}'
    elif kind == "path":
        head = _head(rng.choice(_TRICKS) + "a" * rng.choice([0, 0, 5000]), 0, method="GET")
        body = b""
    elif kind == "method":
        head = _head(path, len(body), method=rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"]))
    elif kind == "type":
        head = _head(path, len(body), kind=rng.choice(["text/plain", "multipart/form-data", "application/xml", ""]))
    elif kind == "raw":
        head, body = rng.randbytes(rng.randint(1, 400)) + b"\r\n\r\n", b""
    head = head or _head(path, len(body))
    try:
        return await asyncio.wait_for(_send(port, head, body, kind, rng), timeout=60)
    except TimeoutError:
        return "no answer in 60 s"
    except OSError:
        return "closed"


def _wrong(rng: random.Random, name: str) -> bytes:
    """A body with some right fields and some that are not."""
    fields = ["prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream"]
    fields += ["logprobs", "echo", "text", "tokens", "kv", "top", "model", "stream_options", "nonsense", "top_k"]
    body: dict[str, Any] = {"model": name, "max_tokens": rng.choice([1, 5, 50])}
    for field_name in rng.sample(fields, rng.randint(1, 4)):
        body[field_name] = rng.choice(_VALUES)
    return json.dumps(body).encode()


async def _send(port: int, head: bytes, body: bytes, kind: str, rng: random.Random) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if kind == "slow" and rng.random() < 0.05:  # each of these holds a connection for as long as it may
            for i in range(0, len(head), 16):
                writer.write(head[i : i + 16])
                await asyncio.sleep(0.3)
        else:
            writer.write(head + body)
        if kind == "gone":
            return "left"
        await writer.drain()
        status = await reader.read(1 << 16)
        return status[9:12].decode("latin-1") if status.startswith(b"HTTP/1.1 ") else "closed"
    finally:
        writer.close()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
