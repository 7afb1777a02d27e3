"""Files that are damaged, that lie, or that mean harm: each is refused by name, and nothing of it is executed."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bonsaigpt.errors import CheckpointError
from bonsaigpt.interop import read_folder
from bonsaigpt.interop.families import FAMILIES
from bonsaigpt.interop.family import entries
from bonsaigpt.interop.huggingface import model_config

CONFIG = {
    "model_type": "gpt2",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "n_positions": 6,
    "vocab_size": 11,
}
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder, to spoil."""
    made = tmp_path / "models" / "sound"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), made / WEIGHTS)
    return made


def tensors() -> dict[str, np.ndarray]:
    _, config = model_config(CONFIG, origin="here")
    values = np.random.default_rng(0)
    return {
        name: values.standard_normal(shape, dtype=np.float32)
        for entry in entries(FAMILIES["gpt2"], config)
        for name, shape in zip(entry.theirs, entry.shapes, strict=True)
    }


def in_shards(folder: Path, places: Callable[[str], str]) -> dict[str, str]:
    """The folder's tensors in two files; what ``places`` says of each is written into the index."""
    named = tensors()
    (folder / WEIGHTS).unlink()
    half = len(named) // 2
    for number, part in enumerate((list(named)[:half], list(named)[half:])):
        save_file({name: named[name] for name in part}, folder / f"part-{number}.safetensors")
    index = {name: places(f"part-{int(n >= half)}.safetensors") for n, name in enumerate(named)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    return index


def with_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the weights again under a header that lies."""
    raw = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


class Trap:
    """What a pickle can do: call anything, here to make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_the_sound_folder_is_read(folder: Path) -> None:
    config, arrays = read_folder(folder)
    assert np.array_equal(arrays["transformer.h.0.mlp.c_fc.weight"].T, tensors()["transformer.h.0.mlp.c_fc.weight"])
    in_shards(folder, lambda part: part)
    again, same = read_folder(folder)
    assert again == config
    assert all(np.array_equal(same[n], arrays[n]) for n in arrays)


def test_a_pickle_in_disguise_is_never_loaded(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (folder / WEIGHTS).write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a pickle"):
        read_folder(folder)
    with zipfile.ZipFile(folder / WEIGHTS, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Trap(marker)))
    with pytest.raises(CheckpointError, match="is a zip file"):
        read_folder(folder)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        read_folder(folder)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))  # the negative control: the trap works
    assert marker.exists()


def overlap(header: dict[str, Any]) -> None:
    first, second = (header[name] for name in sorted(n for n in header if n.endswith("ln_1.weight") or "ln_2.w" in n))
    second["data_offsets"] = first["data_offsets"]


def beyond(header: dict[str, Any]) -> None:
    header["transformer.wte.weight"]["data_offsets"][1] += 4


def larger(header: dict[str, Any]) -> None:
    header["transformer.wte.weight"]["shape"] = [11, 9]


def negative(header: dict[str, Any]) -> None:
    header["transformer.wte.weight"]["shape"] = [-11, -8]


def other_shape(header: dict[str, Any]) -> None:
    header["transformer.wte.weight"]["shape"] = [8, 11]


def other_type(header: dict[str, Any]) -> None:
    header["transformer.wte.weight"]["dtype"] = "I32"


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        (overlap, r"model\.safetensors is damaged"),
        (beyond, r"model\.safetensors is damaged"),
        (larger, r"model\.safetensors is damaged"),
        (negative, r"model\.safetensors is damaged"),
        (other_shape, r"wte\.weight of .* has shape \(8, 11\), its config\.json says \(11, 8\)"),
        (other_type, r"wte\.weight of .* is of type I32"),
    ],
)
def test_a_header_that_lies(folder: Path, lie: Callable[[dict[str, Any]], None], named: str) -> None:
    with_header(folder, lie)
    with pytest.raises(CheckpointError, match=named):
        read_folder(folder)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -3])
def test_a_file_cut_short(folder: Path, length: int) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        read_folder(folder)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "..\\secret.safetensors", "", "..", 7])
def test_an_index_that_climbs_out_of_the_folder(folder: Path, place: Any) -> None:
    save_file(tensors(), folder.parent / "secret.safetensors")
    in_shards(folder, lambda part: place)
    with pytest.raises(CheckpointError, match=r"outside its own folder|cannot be read"):
        read_folder(folder)


def test_an_index_that_contradicts_its_files(folder: Path) -> None:
    index = in_shards(folder, lambda part: "part-0.safetensors")
    with pytest.raises(CheckpointError, match="which its index names"):
        read_folder(folder)
    path = folder / f"{WEIGHTS}.index.json"
    path.write_text(json.dumps({"weight_map": index | {"transformer.ln_f.bias": "part-9.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"part-9\.safetensors is missing"):
        read_folder(folder)
    swapped = {name: "part-1.safetensors" if "wte" in name else part for name, part in index.items()}
    path.write_text(json.dumps({"weight_map": swapped}))
    with pytest.raises(CheckpointError, match="which the index does not say"):
        read_folder(folder)
    for nonsense in ("[]", '{"weight_map": 3}', "{", '{"weight_map": {"a": ["b"]}}'):
        path.write_text(nonsense)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            read_folder(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_layer": 10**12}, "n_layer"),
        ({"vocab_size": 10**12}, "vocabulary"),
        ({"n_embd": 10**12}, "n_embd"),
        ({"n_embd": 16}, r"wte\.weight"),
        ({"n_positions": 7}, r"wpe\.weight"),
        ({"n_inner": 31}, r"mlp\.c_fc"),
        ({"n_layer": 0}, r"config\.json"),
        ({"n_head": -1}, r"config\.json"),
        ({"layer_norm_epsilon": float("nan")}, r"config\.json"),
        ({"n_layer": [1]}, r"config\.json"),
    ],
)
def test_a_config_that_lies_about_shapes(folder: Path, changes: dict[str, Any], named: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(CheckpointError, match=named):
        read_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"gpt2"', '{"model_type": ["gpt2"]}', "\x80"])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError):
        read_folder(folder)
