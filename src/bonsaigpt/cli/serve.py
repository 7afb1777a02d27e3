"""`bonsai serve`: models over HTTP, as OpenAI's clients speak it."""

from __future__ import annotations

import argparse
import csv
import ipaddress
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bonsaigpt.checkpoint import split_address
from bonsaigpt.cli.common import (
    Parser,
    add_placement,
    count_from,
    number_above_zero,
    open_model,
    run_folder,
    runs_folder,
    tell,
    whisper,
)
from bonsaigpt.cli.sampling_flags import add_kv
from bonsaigpt.errors import ConfigError, DeviceError
from bonsaigpt.generate.dialogue import Template

if TYPE_CHECKING:
    from bonsaigpt.serve import Served

__all__ = ["run"]

_EXAMPLE = """  bonsai serve runs/shakespeare-char
  bonsai serve runs/mine runs/mine-pruned --port 8080
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "shakespeare-char", "prompt": "ROMEO:", "max_tokens": 100, "seed": 1}'
  BONSAI_API_KEY=$(openssl rand -hex 24) bonsai serve runs/mine --host 0.0.0.0"""


def run(argv: list[str]) -> int:
    """The verb."""
    arguments = _parser().parse(argv)
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise DeviceError("bonsai serve needs starlette and uvicorn: pip install 'bonsaigpt[serve]'")
    from bonsaigpt.serve import Limits, Models
    from bonsaigpt.serve.app import make_app
    from bonsaigpt.serve.server import LOOPBACK, bind, make_server

    key = _key(arguments)
    if key is None and not _is_loopback(arguments.host):
        raise ConfigError(
            f"{arguments.host} can be reached from other machines: set a key in BONSAI_API_KEY or with "
            "--api-key-file, or stay with --host 127.0.0.1"
        )
    limits = Limits(rows=arguments.rows, queue=arguments.queue, tokens=arguments.max_tokens, seconds=arguments.timeout)
    say = whisper(Console(stderr=True))
    served = [_open(address, arguments) for address in arguments.models]
    names = [model.name for model in served]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two models would be called {twice}: clients could not tell them apart; serve one of them")
    listening = bind(arguments.host, arguments.port)
    with listening:
        models = Models(served, rows=limits.rows, weights=arguments.weights)
        template = Template(
            system=arguments.system, user=arguments.user, assistant=arguments.assistant, end=arguments.end
        )
        host, port = listening.getsockname()[:2]
        hosts = LOOPBACK | {host, f"[{host}]"} if key is None else None
        app = make_app(models, limits, template, key=key, hosts=hosts, say=say)
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def on_start() -> None:
            tell(f"serving {', '.join(names)}: open {where} in a browser (API: {where}/v1); Ctrl-C ends it")

        def on_stop() -> None:
            if texts := app.texts:
                what = f"{texts} text{'s' * (texts > 1)}, for {limits.seconds:g} s at most"
                tell(f"finishing {what}; another Ctrl-C drops what is left")
            else:
                tell("stopped")

        make_server(app, limits, on_start=on_start, on_stop=on_stop).run(sockets=[listening])
    return 0


def _parser() -> Parser:
    parser = Parser(
        "serve",
        "Serve models over HTTP: a playground page at /; /v1/completions, /v1/chat/completions and /v1/models as "
        "OpenAI's clients speak them; /health, /metrics (Prometheus), /openapi.json.",
        _EXAMPLE,
    )
    parser.add_argument(
        "models", nargs="+", metavar="RUN", help="runs (RUN, RUN@last, RUN@500) or folders in Hugging Face's format"
    )
    where = parser.add_argument_group("address")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    where.add_argument("--port", type=count_from(0), default=8000, help="port; 0 takes a free one (default: 8000)")
    where.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="the key that clients must show (default: $BONSAI_API_KEY, else no key)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--rows", type=count_from(1), default=16, metavar="N", help="texts that a model makes at once (default: 16)"
    )
    limits.add_argument(
        "--queue", type=count_from(0), default=64, metavar="N", help="texts that may wait for that (default: 64)"
    )
    limits.add_argument(
        "--max-tokens", type=count_from(1), default=4096, metavar="N", help="new tokens of a text (default: 4096)"
    )
    limits.add_argument(
        "--timeout",
        type=number_above_zero("is no time: give seconds, e.g. 60"),
        default=120,
        metavar="SECONDS",
        help="for all texts of a request (default: 120)",
    )
    group = parser.add_argument_group("template", "How a dialogue is written down; as in the texts of the training.")
    group.add_argument("--system", default="", metavar="TEXT", help="before the first turn (default: nothing)")
    group.add_argument("--user", default="User: ", metavar="TEXT", help="before a user's turns (default: 'User: ')")
    group.add_argument(
        "--assistant", default="Assistant: ", metavar="TEXT", help="before the model's (default: 'Assistant: ')"
    )
    group.add_argument("--end", default="\n", metavar="TEXT", help="after each turn (default: a new line)")
    parser.add_argument(
        "--weights", choices=["fp32", "int8"], default="fp32", help="how weights are held (default: fp32)"
    )
    add_kv(parser)
    add_placement(parser)
    runs_folder(parser)
    return parser


def _key(arguments: argparse.Namespace) -> str | None:
    """The key that clients must show.

    Raises:
        ConfigError: the file cannot be read, or it is no key.
    """
    if arguments.api_key_file is None:
        key = os.environ.get("BONSAI_API_KEY")
        if key is None:
            return None
        origin = "BONSAI_API_KEY"
    else:
        origin = str(arguments.api_key_file)
        try:
            key = arguments.api_key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"the key file {origin} cannot be read: {error}. Check the path.") from None
    key = key.strip()
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"the key in {origin} can be guessed or sent badly: use 16 or more ASCII letters and digits")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open(address: str, arguments: argparse.Namespace) -> Served:
    from bonsaigpt.serve import Served

    opened = open_model(address, runs=arguments.runs)
    engine, model = opened.on(arguments)
    place, which = split_address(address)
    path = opened.run.path if opened.run is not None else run_folder(place, arguments.runs)
    return Served(
        name=f"{path.resolve().name}@{which}" if which else path.resolve().name,
        config=opened.config,
        tokenizer=opened.tokenizer,
        engine=engine,
        model=model,
        created=int(path.stat().st_mtime),
        parameters=sum(array.size for array in opened.weights.values()),
        kv=arguments.kv,
        policies=_measured(path / "studies" / "kv.csv"),
    )


def _measured(figures: Path) -> dict[str, str]:
    """The model's best cache policies by `bonsai study kv`, and what they came to in words; none if there was no such
    study, or its table is damaged or another one. The model of the first row is the run's, others are its variants."""
    try:
        with figures.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return {
            row["policy"]: f"{float(row['bits_per_token']):.0f} bits a token, {float(row['added']):+.4f} nats"
            for row in rows
            if row.get("frontier") == "1" and row.get("model") == rows[0].get("model")
        }
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
