"""nanoGPT's and minGPT's checkpoints are read as data: the tensors, and not a single call."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.errors import CheckpointError, DataError
from bonsaigpt.interop import read_torch_model, tokenizer_beside
from bonsaigpt.interop.pickled import Saved, read_pickle, read_torch

ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "bias": False, "vocab_size": 11, "dropout": 0.1}


def state(
    *, bias: bool, layers: int = 2, width: int = 8, tied: bool = True, vocabulary: int = 11
) -> OrderedDict[str, torch.Tensor]:
    """A state_dict with the names and shapes that nanoGPT's and minGPT's model.py give."""
    torch.manual_seed(0)
    made: OrderedDict[str, torch.Tensor] = OrderedDict()
    made["transformer.wte.weight"] = torch.randn(vocabulary, width)
    made["transformer.wpe.weight"] = torch.randn(6, width)
    shapes = {"ln_1": (width,), "attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
    shapes |= {"ln_2": (width,), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
    for layer in range(layers):
        for name, shape in shapes.items():
            made[f"transformer.h.{layer}.{name}.weight"] = torch.randn(shape)
            if bias:
                made[f"transformer.h.{layer}.{name}.bias"] = torch.randn(shape[0])
        made[f"transformer.h.{layer}.attn.bias"] = torch.ones(6, 6).tril().view(1, 1, 6, 6)
    made["transformer.ln_f.weight"] = torch.randn(width)
    if bias:
        made["transformer.ln_f.bias"] = torch.randn(width)
    made["lm_head.weight"] = made["transformer.wte.weight"] if tied else torch.randn(vocabulary, width)
    return made


def nanogpt(path: Path, *, prefix: str = "", args: dict[str, Any] = ARGS) -> OrderedDict[str, torch.Tensor]:
    """A checkpoint as nanoGPT's train.py writes it, with its optimizer."""
    tensors = state(bias=args["bias"], vocabulary=args["vocab_size"])
    parameter = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    saved = {
        "model": OrderedDict((prefix + name, tensor) for name, tensor in tensors.items()),
        "optimizer": optimizer.state_dict(),
        "model_args": args,
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"out_dir": "out", "learning_rate": 1e-3, "wandb_log": False, "device": "cpu", "init": None},
    }
    torch.save(saved, path)
    return tensors


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [False, True])
def test_nanogpt(tmp_path: Path, prefix: str, bias: bool) -> None:
    tensors = nanogpt(tmp_path / "ckpt.pt", prefix=prefix, args=ARGS | {"bias": bias})
    config, arrays = read_torch_model(tmp_path / "ckpt.pt")
    assert (config.n_head, config.bias, config.tie_embeddings, config.mlp.kind) == (2, bias, True, "gelu")
    wanted = {n: t for n, t in tensors.items() if not n.endswith(".attn.bias") and n != "lm_head.weight"}
    assert arrays.keys() == wanted.keys()
    assert all(np.array_equal(arrays[n], wanted[n].numpy()) for n in wanted)


def test_mingpt(tmp_path: Path) -> None:
    tensors = state(bias=True, tied=False)
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="how many heads"):
        read_torch_model(tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"n_head": 4, "model_type": None}}))
    config, arrays = read_torch_model(tmp_path / "model.pt")
    assert (config.n_head, config.bias, config.tie_embeddings) == (4, True, False)
    assert config.mlp.model_dump() == {"kind": "gelu", "hidden": None, "approximate": "tanh"}
    assert np.array_equal(arrays["lm_head.weight"], tensors["lm_head.weight"].numpy())
    (tmp_path / "config.json").unlink()
    torch.save(state(bias=True, layers=3, width=48, tied=False), tmp_path / "model.pt")
    assert read_torch_model(tmp_path / "model.pt")[0].n_head == 3  # gpt-nano's


def test_views_and_formats(tmp_path: Path) -> None:
    """Tensors that share a storage, lie transposed in it, or are of other types."""
    base = torch.randn(6, 4)
    tensors = {"a": base[1:4], "b": base.T, "c": base[:, 2], "h": base.half(), "d": base.double()}
    tensors |= {"f": base.bfloat16(), "n": torch.arange(5), "z": torch.zeros(0, 3), "s": torch.tensor(3.5)}
    torch.save({**tensors, "p": torch.nn.Parameter(base)}, tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt")
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].read(), (tensor.float() if name != "n" else tensor).numpy()), name
    assert isinstance(found["p"], Saved)


def test_metas(tmp_path: Path) -> None:
    characters = sorted("\n hello wörld")
    itos = dict(enumerate(sorted(set(characters))))
    for protocol in (2, 4, 5):
        (tmp_path / "meta.pkl").write_bytes(
            pickle.dumps({"vocab_size": 9, "itos": itos, "stoi": {c: i for i, c in itos.items()}}, protocol)
        )
        assert tokenizer_beside(tmp_path / "ckpt.pt").decode([3, 2]) == itos[3] + itos[2]
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "b", 1: "a"}}))
    with pytest.raises(CheckpointError, match="in order"):
        tokenizer_beside(tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        tokenizer_beside(tmp_path / "ckpt.pt")


class Calls:
    """A value whose pickle calls something."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.function, self.given = function, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.given


class Object:
    """A plain object, which a pickle makes by NEWOBJ and BUILD."""


def zipped(path: Path, data: bytes, **entries: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for name, content in entries.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)


def test_malicious_pickles_are_refused_by_name_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    attacks = {
        r"pathlib.*Path\.touch|getattr": Calls(Path.touch, marker),
        r"posix\.system|nt\.system": Calls(__import__("os").system, f"touch {marker}"),
        r"(builtins|__builtin__)\.eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        r"(builtins|__builtin__)\.exec": {"model": [Calls(exec, f"open({str(marker)!r}, 'w')")]},
        r"torch\.serialization\.load": Calls(torch.load, str(marker)),
        r"Object|_reconstructor": Object(),
    }
    for protocol in (0, 1, 2, 4, 5):
        for named, attack in attacks.items():
            data = pickle.dumps(attack, protocol)
            zipped(tmp_path / "ckpt.pt", data)
            (tmp_path / "meta.pkl").write_bytes(data)
            for read, file in ((read_torch, "ckpt.pt"), (read_pickle, "meta.pkl")):
                with pytest.raises(CheckpointError, match=rf"({named}|opcode).*nothing was executed"):
                    read(tmp_path / file)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Calls(Path.touch, marker)))  # the negative control: the attack works
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",  # protocol 0
        b"(ibuiltins\neval\n.",  # INST
        b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00ls\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02N)R.",  # a call of nothing
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a call of a storage
        b"\x80\x02}}}b.b",
        b"\x80\x02h\x07.",  # a memo that is not there
        b"\x80\x02.",
        b"\x80\x02]",
        b"",
        b"\x80\x02ccollections\nOrderedDict\n]R.",
    ],
)
def test_crafted_pickles(data: bytes, tmp_path: Path) -> None:
    zipped(tmp_path / "ckpt.pt", data)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
        read_torch_model(tmp_path / "ckpt.pt")


class Rebuilt:
    """What torch.save writes for a tensor, with any numbers."""

    def __init__(
        self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], size: int, key: str = "0"
    ) -> None:
        self.arguments = offset, shape, strides
        self.storage = ("storage", torch.FloatStorage, key, "cpu", size)

    def __reduce__(self) -> tuple[Any, ...]:
        offset, shape, strides = self.arguments
        return torch._utils._rebuild_tensor_v2, (Persistent(self.storage), offset, shape, strides, False, OrderedDict())


class Persistent:
    def __init__(self, told: Any) -> None:
        self.told = told


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.told if isinstance(value, Persistent) else None


def torch_file(path: Path, value: Any, **entries: bytes) -> None:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    zipped(path, buffer.getvalue(), **entries)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (Rebuilt(0, (4,), (1,), 4), None),  # sound
        (Rebuilt(0, (2, 3), (2, 1), 4), "makes a tensor of"),
        (Rebuilt(0, (2, 2), (3, 1), 4), "reaches outside"),
        (Rebuilt(3, (2,), (1,), 4), "reaches outside"),
        (Rebuilt(-1, (2,), (1,), 4), "reaches outside"),
        (Rebuilt(0, (2,), (-1,), 4), "makes a tensor of"),
        (Rebuilt(0, (10**12,), (0,), 4), "makes a tensor of"),
        (Rebuilt(0, (4,), (1,), 4, key="1"), "no storage"),
        (Rebuilt(0, (4,), (1,), 4, key="../0"), "no storage"),
        (Rebuilt(0, (8,), (1,), 8), "another size"),
    ],
)
def test_tensors_that_lie(tensor: Rebuilt, named: str | None, tmp_path: Path) -> None:
    numbers = np.arange(4, dtype="<f4")
    torch_file(tmp_path / "x.pt", {"a": tensor}, data__0=numbers.tobytes())
    if named is None:
        assert np.array_equal(read_torch(tmp_path / "x.pt")["a"].read(), numbers)
        return
    with pytest.raises(CheckpointError, match=named):
        read_torch(tmp_path / "x.pt")["a"].read()


def test_a_hostile_zip_gives_no_foreign_memory(tmp_path: Path) -> None:
    path, numbers = tmp_path / "x.pt", np.arange(1, 9, dtype="<f4")
    torch_file(path, {"a": Rebuilt(0, (8,), (1,), 8)}, data__0=numbers.tobytes())
    sound = path.read_bytes()
    central = sound.rindex(b"PK\x01\x02")
    short = bytearray(sound)
    crc = zlib.crc32(numbers[:2].tobytes())
    short[central + 16 : central + 24] = struct.pack("<II", crc, 8)  # of 32 bytes
    flipped = bytearray(sound)
    flipped[sound.index(numbers.tobytes()) + 5] ^= 1
    assert np.array_equal(read_torch(path)["a"].read(), numbers)
    for spoilt, named in ((short, "holds less"), (flipped, "is damaged .*CRC")):
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match=named):
            read_torch(path)["a"].read()
    path.write_bytes(sound)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("archive/data/0", numbers.tobytes())
    with pytest.raises(CheckpointError, match=r"is damaged .*copy it again"):
        read_torch(path)["a"].read()


def test_a_compressed_pickle_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
    with pytest.raises(CheckpointError, match=r"compressed data\.pkl"):
        read_torch(tmp_path / "x.pt")


def test_pickles_that_nest_are_refused(tmp_path: Path) -> None:
    """Hashing or printing these would overflow the stack, or take 2^60 steps."""
    deep = b")" + b"\x85" * 20_000
    wide = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"h\x00"
    hostile = {
        b"}" + deep + b"Ns.": "a key is no plain value",
        b"(" + deep + b"Nd.": "a key is no plain value",
        b"ccollections\nOrderedDict\n](" + deep + b"N\x86e\x85R.": "damaged",
        deep + b"\x8c\x01x\x93.": "where a str belongs",
        deep + b")R.": "would call",
        wide + b")R.": "would call",
        wide + b"Na.": "where a list belongs",
    }
    for data, named in hostile.items():
        (tmp_path / "meta.pkl").write_bytes(b"\x80\x04" + data)
        with pytest.raises(CheckpointError, match=named):
            read_pickle(tmp_path / "meta.pkl")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({1: "a", None: 2.5, "b": True, 0.5: ()}))
    assert read_pickle(tmp_path / "meta.pkl") == {1: "a", None: 2.5, "b": True, 0.5: ()}


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    path.write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(CheckpointError, match=r"no file of torch\.save"):
        read_torch_model(path)
    torch.save({"model": state(bias=False)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        read_torch_model(path)
    for value in (3, {"model": 3}, {"state_dict": {"a": torch.ones(1)}}, [torch.ones(1)]):
        torch.save(value, path)
        with pytest.raises(CheckpointError, match="no checkpoint of nanoGPT"):
            read_torch_model(path)
    for change in ({"n_layer": 3}, {"n_layer": 10**9}, {"n_embd": 16}, {"n_head": 3}, {"n_layer": "x"}):
        nanogpt(path, args=ARGS | change)
        with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
            read_torch_model(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
        read_torch_model(path)
