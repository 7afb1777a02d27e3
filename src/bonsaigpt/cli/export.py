"""`bonsai export`: a model for other programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from bonsaigpt import __version__
from bonsaigpt.cli.common import Opened, Parser, open_model, runs_folder, whisper
from bonsaigpt.config import dump_toml
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import BonsaiError, ConfigError
from bonsaigpt.interop.card import model_card, transformers_usage
from bonsaigpt.interop.gguf_file import write_gguf
from bonsaigpt.interop.graph_files import GRAPH_FILES, graph_usage, write_graph_folder
from bonsaigpt.interop.writing import family_for, write_folder
from bonsaigpt.report.history import read_history
from bonsaigpt.spec import parameter_count
from bonsaigpt.units import count, size

__all__ = ["export_model", "run"]

_EXAMPLE = """  bonsai export runs/shakespeare-char --to hf
  bonsai export runs/first@last --dtype bf16 --out models/first
  bonsai export runs/first --to gguf --dtype q8_0
  bonsai export runs/first-kronecker --to torch --factored"""

_DTYPES = ["fp32", "bf16", "fp16", "q8_0", "q4_0"]


def run(argv: list[str]) -> int:
    """The verb."""
    export_model(argv)
    return 0


def export_model(argv: list[str]) -> Path:
    """What the verb does; the file or folder that it wrote."""
    parser = Parser(
        "export",
        "Write a model for other programs: hf, a folder that transformers' AutoModelForCausalLM and AutoTokenizer load "
        "without any code of ours; gguf, one file for llama.cpp and what is built on it; torch and onnx, the step of "
        "decoding as a graph for torch.export.load or ONNX Runtime, which takes keys and values and gives them back. "
        "Factored weights are multiplied out first.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument("--to", choices=list(_EXPORTS), default="hf", help="the format (default: hf)")
    parser.add_argument("--out", type=Path, metavar="PATH", help="where to (default: inside the run, in export/)")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="fp32",
        help="number format of weights; in gguf alone q8_0 and q4_0: 8 or 4 bits and a scale for every 32 numbers; "
        "torch and onnx have fp32 (default: fp32)",
    )
    parser.add_argument(
        "--factored",
        action="store_true",
        help="leave Kronecker sums, low rank, Monarch and adapters as they are: in torch and onnx",
    )
    runs_folder(parser)
    arguments = parser.parse(argv)
    export, dtypes = _EXPORTS[arguments.to]
    if arguments.dtype not in dtypes:
        others = " or ".join(f"--to {form}" for form, (_, has) in _EXPORTS.items() if arguments.dtype in has)
        raise ConfigError(
            f"--dtype {arguments.dtype} is no format of --to {arguments.to}: give {others}, or one of {dtypes}."
        )
    if arguments.factored and arguments.to not in GRAPH_FILES:
        raise ConfigError(f"--to {arguments.to} has no words for factors (--factored): give --to torch or --to onnx.")
    opened = open_model(arguments.model, runs=arguments.runs)
    target, words = export(opened, arguments)
    files = target.iterdir() if target.is_dir() else [target]
    told = f"{target}: {words}, {size(sum(file.stat().st_size for file in files))}"
    Console().print(told, highlight=False, markup=False, soft_wrap=True)
    return target


def _to_folder(opened: Opened, arguments: argparse.Namespace) -> tuple[Path, str]:
    target = arguments.out or _inside(opened, "hf")
    family, _ = family_for(opened.config, origin=opened.label)
    name = _name(opened, target)
    facts = {
        "library": "transformers",
        "form": f"In transformers it is a `{family.architecture}`.",
        "usage": transformers_usage(name, _quoted(_prompt(opened))),
    }
    write_folder(
        target,
        opened.config,
        opened.weights,
        opened.tokenizer,
        origin=opened.label,
        card=_card(opened, name, arguments.dtype, facts),
        dtype=arguments.dtype,
    )
    return target, f"{family.architecture} for AutoModelForCausalLM.from_pretrained"


def _to_gguf(opened: Opened, arguments: argparse.Namespace) -> tuple[Path, str]:
    target = arguments.out or _inside(opened, f"model-{arguments.dtype}.gguf")
    family = write_gguf(
        target,
        opened.config,
        opened.weights,
        opened.tokenizer,
        origin=opened.label,
        name=_name(opened, target),
        dtype=arguments.dtype,
    )
    return target, f"{family.model_type} for llama.cpp"


def _to_graph(opened: Opened, arguments: argparse.Namespace) -> tuple[Path, str]:
    target = arguments.out or _inside(opened, arguments.to)
    name, prompt, form = _name(opened, target), _prompt(opened), arguments.to
    room = opened.config.block_size - len(opened.tokenizer.encode(prompt))
    facts = {
        "library": {"torch": "pytorch", "onnx": "onnx"}[form],
        "form": f"`{GRAPH_FILES[form]}` is its step of decoding: tokens with the keys and values of those before them "
        "to logits and the keys and values with theirs.",
        "usage": graph_usage(opened.config, form, prompt=_quoted(prompt), count=max(min(50, room), 1)),
    }
    whisper(Console(stderr=True))("tracing the model and writing the graph: some seconds, or a minute")
    write_graph_folder(
        target,
        load_engine("torch", device="cpu", precision="fp32"),
        opened.config,
        opened.weights,
        opened.tokenizer,
        origin=opened.label,
        card=_card(opened, name, arguments.dtype, facts),
        form=form,
        factored=arguments.factored,
    )
    reader = {"torch": "torch.export.load", "onnx": "onnxruntime.InferenceSession"}[form]
    return target, f"{GRAPH_FILES[form]} for {reader}"


_EXPORTS: dict[str, tuple[Callable[[Opened, argparse.Namespace], tuple[Path, str]], list[str]]] = {
    "hf": (_to_folder, _DTYPES[:3]),
    "gguf": (_to_gguf, _DTYPES),
    "torch": (_to_graph, _DTYPES[:1]),
    "onnx": (_to_graph, _DTYPES[:1]),
}
"""What writes each format, and the number formats that it has."""


def _name(opened: Opened, target: Path) -> str:
    return target.stem if opened.run is None else opened.run.path.name


def _inside(opened: Opened, name: str) -> Path:
    if opened.run is None:
        raise ConfigError(f"{opened.label} is no run to put an export into: say where to with --out PATH.")
    return opened.run.path / "export" / name


def _prompt(opened: Opened) -> str:
    """What the model's card begins with: text that its tokenizer knows."""
    asked = opened.run.config.train.sample_prompt if opened.run is not None else ""
    for prompt in filter(str.strip, (asked, "The")):
        with suppress(BonsaiError):
            opened.tokenizer.encode(prompt)
            return prompt
    pieces = (opened.tokenizer.decode([token]) for token in range(opened.tokenizer.vocab_size))
    return next((piece for piece in pieces if piece.strip() and piece.isprintable()), "")


def _quoted(text: str) -> str:
    """Inside a pair of double quotes, as Python reads them."""
    return json.dumps(text)[1:-1]


def _card(opened: Opened, name: str, dtype: str, facts: dict[str, str]) -> str:
    config = opened.config
    sizes = {
        "parameters": count(parameter_count(config)),
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "block_size": config.block_size,
        "vocabulary": f"{config.vocabulary:,}",
    }
    measured, made = {}, {"bonsaigpt": __version__, "weights": dtype}
    if opened.run is None:
        return model_card(name, sizes | facts, measured, made | {"from": opened.label})
    history = read_history(opened.run)
    evaluation = next((e for e in history.evaluations if e["step"] == opened.step), {})
    units = {
        "val_loss": "validation loss, nats a token",
        "val_perplexity": "perplexity a token",
        "val_bits_per_byte": "bits per byte",
        "val_exact": "exactly right, share of rows",
        "val_ordered": "pairs whose chosen answer gained on the rejected one in the tuning, share",
        "val_margin": "margin of the preferred answer, nats times beta",
    }
    measured = {words: f"{evaluation[key]:.4f}" for key, words in units.items() if key in evaluation}
    made |= {
        "checkpoint": f"step {opened.step}",
        "tokens seen": f"{evaluation.get('tokens', history.tokens):,}",
        "data": f"{opened.run.config.data.kind}, {history.environment.get('data', 'unknown')}",
        "command": f"`{history.environment.get('command', 'unknown')}`",
    }
    return model_card(name, sizes | facts, measured, made, dump_toml(opened.run.config))
