"""What several tests share: texts, and a model so small that training it takes a tenth of a second."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "red", "dogs", "run", "far", "away", "from", "home"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of texts that lies beside the repository, or where BONSAI_SHARED_DATA says."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BONSAI_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared texts at {folder}: set BONSAI_SHARED_DATA to a folder with tinyshakespeare.txt")
    return folder


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of a few kilobytes with 18 distinct characters, the same in every session."""
    words = random.Random(1)
    lines = [" ".join(words.choice(WORDS) for _ in range(8)) for _ in range(60)]
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_flags() -> list[str]:
    """Flags of `bonsai train` for 3,500 parameters; the data are the caller's."""
    settings = {
        "model.n_layer": 1,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": 8,
        "train.batch_size": 4,
        "train.device": "cpu",
        "train.precision": "fp32",
        "train.threads": 1,
        "train.compile": "off",  # `auto` would measure, and decide by how busy the machine is
        "train.tensorboard": "false",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]
