"""`bonsai fetch`: a model from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bonsaigpt.cli.common import Parser
from bonsaigpt.errors import ConfigError
from bonsaigpt.interop.hub import fetch_model, is_hub_name
from bonsaigpt.units import size

__all__ = ["fetch_folder", "run"]

_EXAMPLE = """  bonsai fetch openai-community/gpt2
  bonsai fetch HuggingFaceTB/SmolLM-135M --revision main --out models/smol
  bonsai train my-text --data.path my-texts --init models/gpt2"""


def run(argv: list[str]) -> int:
    """The verb."""
    fetch_folder(argv)
    return 0


def fetch_folder(argv: list[str]) -> Path:
    """What the verb does; the folder that the model is in."""
    parser = Parser(
        "fetch",
        "Fetch a model from the Hugging Face hub into a folder, which every verb then takes as a model: config.json, "
        "safetensors and tokenizer of one commit, never a pickle or code. No other verb fetches models. Broken off, it "
        "goes on where it stopped. This needs the extra `hub`, whose package takes a token from HF_TOKEN.",
        _EXAMPLE,
    )
    parser.add_argument("name", help="OWNER/NAME")
    parser.add_argument("--revision", help="branch, tag or commit (default: the newest commit)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: models/NAME)")
    arguments = parser.parse(argv)
    if not is_hub_name(arguments.name):
        raise ConfigError(f"'{arguments.name}' is no model of the hub: give OWNER/NAME, e.g. openai-community/gpt2.")
    folder = arguments.out or Path("models") / arguments.name.split("/")[1]
    commit = fetch_model(arguments.name, folder, revision=arguments.revision)
    held = size(sum(file.stat().st_size for file in folder.iterdir()))
    told = f"{folder}: {arguments.name} at commit {commit}, {held}"
    Console().print(told, highlight=False, markup=False, soft_wrap=True)
    return folder
