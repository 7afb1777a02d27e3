"""Memory from batch to batch: remembered is what was read, row by row, in training, evaluation and on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.cli import main
from bonsaigpt.config import RunConfig, derive, validate
from bonsaigpt.data.batches import Batch
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import CheckpointError, ConfigError
from bonsaigpt.measure import evaluate
from bonsaigpt.torch_engine.carry import Carried
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build

ENGINE = TorchEngine(device="cpu", threads=1, workers=1)
ROPE = {"kind": "rope"}
MODELS: dict[str, dict[str, Any]] = {
    "rope": {"position": ROPE},
    "no position": {"position": {"kind": "none"}},
    "windows": {"position": ROPE, "attention": {"window": 5, "pattern": "SL"}},
    "shared, normalised": {"position": ROPE, "attention": {"share_kv": 2, "qk_norm": True, "n_kv_head": 2}},
    "sinks, post-norm": {"position": ROPE, "attention": {"sinks": True}, "norm_position": "post"},
    "latent": {"position": ROPE, "attention": {"kind": "latent"}},
}
KINDS = [(name, kind) for name in MODELS for kind in ("kv", "hidden") if (name, kind) != ("latent", "hidden")]
TEXT = np.random.default_rng(0).integers(0, 17, (3, 24))


def config(name: str = "rope", kind: str = "kv", **changes: Any) -> RunConfig:
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 8, "vocab_size": 17}
    train = {"memory": {"kind": kind, "length": 24}, "batch_size": 3, "threads": 1} | changes.pop("train", {})
    data = {"kind": "files", "path": "x", "order": "streams"}
    return validate({"model": sizes | MODELS[name] | changes, "train": train, "data": data}, origin="test")


def lively(run: RunConfig) -> GPT:
    """Weights of size 0.15."""
    model = build(run.model, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.15)
    return model


def memory(run: RunConfig, rows: int = 3) -> Carried:
    found = ENGINE.memory(run.model, run.train.memory, rows=rows)
    assert found is not None
    return found


@torch.inference_mode()
def read(model: GPT, carried: Carried, tokens: np.ndarray, reset: list[bool] | None = None) -> torch.Tensor:
    """The logits of a batch, and its end remembered."""
    carried.begin(None if reset is None else np.array(reset))
    carry = carried.of(slice(0, len(tokens)), tokens.shape[1])
    logits = model(torch.from_numpy(tokens), carry=carry)
    carry.keep()
    return logits


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_blocks_with_a_memory_are_the_text_read_at_once(name: str, kind: str) -> None:
    """The weights do not change, so what is remembered is what a longer block would compute."""
    run = config(name, kind)
    model, carried = lively(run), memory(run)
    whole = lively(derive(run, model={"block_size": 24}, train={"memory": {"kind": "none"}}))
    with torch.inference_mode():
        want = whole(torch.from_numpy(TEXT))
    assert want.abs().max() > 0.5
    found = [read(model, carried, part) for part in np.split(TEXT, [8, 13], axis=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), want, rtol=0, atol=1e-5)
    # Negative control: without what stood before.
    assert (read(model, memory(run), TEXT[:, 13:]) - want[:, 13:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["kv", "hidden"])
def test_a_row_that_starts_anew_remembers_nothing_and_the_others_do(kind: str) -> None:
    run = config("rope", kind)
    model, carried = lively(run), memory(run)
    read(model, carried, TEXT[:, :8])
    found = read(model, carried, TEXT[:, 8:16], reset=[False, True, False])
    fresh = read(model, memory(run), TEXT[:, 8:16])
    torch.testing.assert_close(found[1], fresh[1], rtol=0, atol=1e-5)
    assert min((found[row] - fresh[row]).abs().max().item() for row in (0, 2)) > 1e-3
    assert carried.next_B.tolist() == [16, 8, 16]
    assert (carried.positions_BM >= 0).sum(1).tolist() == [16, 8, 16]


def test_the_memory_is_of_its_length_and_half_the_size_where_inputs_are_kept() -> None:
    run = config(train={"memory": {"kind": "kv", "length": 5}})
    model, carried = lively(run), memory(run)
    for start in (0, 8):
        read(model, carried, TEXT[:, start : start + 8])
    assert carried.positions_BM[0].tolist() == [11, 12, 13, 14, 15]
    found = read(model, carried, TEXT[:, 16:])
    again = memory(run)
    for buffer, own in zip(again.held.values(), carried.held.values(), strict=True):
        assert buffer.shape == own.shape == (3, 3, 4, 5, 8)
    assert (found - read(model, again, TEXT[:, 16:])).abs().max() > 1e-3
    inputs = memory(config(kind="hidden", train={"memory": {"kind": "hidden", "length": 5}}))
    assert sum(b.numel() for b in carried.held.values()) == 2 * sum(b.numel() for b in inputs.held.values())


@pytest.mark.parametrize("kind", ["kv", "hidden"])
@pytest.mark.parametrize("train", [{"micro_batch": 1}, {"recompute": True}], ids=["micro 1", "recompute"])
def test_every_way_to_take_a_step_remembers_the_same(kind: str, train: dict[str, Any]) -> None:
    """Losses of three steps; and no gradient flows into what is remembered."""
    losses = []
    for changes in ({}, train, {"memory": {"kind": kind, "length": 1}}):
        run = config(kind=kind, train={"micro_batch": 3} | changes)
        state = ENGINE.init(run)
        found = []
        for step in range(3):
            tokens = TEXT[:, 8 * step : 8 * step + 8]
            batch = Batch(tokens_BT=tokens, targets_BT=tokens, count=24, reset_B=np.full(3, step == 0))
            found.append(ENGINE.step(state, batch, config=run, share=1.0, step=step).host()["loss"])
        assert not any(buffer.requires_grad for buffer in state.carried.held.values())
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2][0] == pytest.approx(losses[0][0], rel=1e-6)  # nothing is remembered yet
    assert losses[2][1:] != pytest.approx(losses[0][1:], rel=1e-5)  # the negative control


def test_a_step_that_went_wrong_leaves_no_trace() -> None:
    run = config()
    state = ENGINE.init(run)
    with torch.no_grad():
        kept = state.model.transformer.h[0].attn.c_attn.weight.clone()
        state.model.transformer.h[0].attn.c_attn.weight.fill_(float("nan"))
    batch = Batch(tokens_BT=TEXT[:, :8], targets_BT=TEXT[:, :8], count=24)
    ENGINE.step(state, batch, config=run, share=1.0, step=0)
    assert all(buffer.isfinite().all() for buffer in state.carried.held.values())
    assert (state.carried.positions_BM < 0).all()
    with torch.no_grad():
        state.model.transformer.h[0].attn.c_attn.weight.copy_(kept)
    assert np.isfinite(ENGINE.step(state, batch, config=run, share=1.0, step=1).host()["loss"])


def test_the_memory_is_in_the_checkpoint_and_another_size_is_refused() -> None:
    run = config()
    state = ENGINE.init(run)
    batch = Batch(tokens_BT=TEXT[:, :8], targets_BT=TEXT[:, 1:9], count=24)
    ENGINE.step(state, batch, config=run, share=1.0, step=0)
    model, optimizer = ENGINE.arrays(state)
    later = Batch(tokens_BT=TEXT[:, 8:16], targets_BT=TEXT[:, 9:17], count=24)
    restored = ENGINE.restore(run, model, optimizer)
    without = ENGINE.restore(run, model, {n: a for n, a in optimizer.items() if not n.startswith("memory.")})
    on, again, bare = (
        ENGINE.step(s, later, config=run, share=1.0, step=1).host()["loss"] for s in (state, restored, without)
    )
    assert on == again != bare
    longer = derive(run, train={"memory": {"kind": "kv", "length": 9}})
    with pytest.raises(CheckpointError, match=r"leave train\.memory as it was"):
        ENGINE.restore(longer, model, optimizer)


def batches(tokens: np.ndarray, rows: int = 2, block: int = 8) -> TokenBatches:
    stream = TokenStream.of(tokens.astype(np.uint16))
    return TokenBatches(
        train=stream,
        val=stream,
        tokenizer=CharTokenizer("abcdefghijklmnopq"),
        order="streams",
        seed=0,
        plan=BatchPlan(batch_size=rows, block_size=block),
        fingerprint="x",
    )


@pytest.mark.parametrize("size", [20, 131, 400, 1000])
def test_streams_of_the_validation_split_hold_every_target_once(size: int) -> None:
    source = batches(np.arange(size))
    seen: list[int] = []
    last: dict[int, int] = {}
    for batch in source.validation_streams():
        assert (batch.targets_BT == batch.tokens_BT + 1).all()
        for row, tokens in enumerate(batch.tokens_BT.tolist()):
            if batch.reset_B is None:
                assert tokens[0] == last[row] + 1  # the row reads on
            last[row] = tokens[-1]
        seen += batch.targets_BT.flatten().tolist()
    assert sorted(seen) == list(range(1, size))


def test_an_evaluation_with_memory_is_the_loss_of_the_streams_read_at_once() -> None:
    tokens = np.random.default_rng(1).integers(0, 17, 16 * 21 + 6)
    run = config("rope", "hidden")
    model, source = lively(run), batches(tokens)
    whole = lively(derive(run, model={"block_size": 32}, train={"memory": {"kind": "none"}}))
    found = evaluate(ENGINE, model, source, memory=(run.model, run.train.memory))
    total = 0.0
    stream = (len(tokens) - 1) // 16
    for first, length in [*((row * stream, stream) for row in range(16)), (16 * stream, len(tokens) - 1 - 16 * stream)]:
        piece = torch.from_numpy(tokens[first : first + length + 1])[None]
        with torch.inference_mode():
            logs = whole(piece[:, :-1]).log_softmax(-1)
        total -= logs[0].gather(1, piece[0, 1:, None]).sum().item()
    assert found.loss == pytest.approx(total / (len(tokens) - 1), rel=1e-5)
    assert found.tokens == len(tokens) - 1
    assert evaluate(ENGINE, model, source).loss != pytest.approx(found.loss, rel=1e-4)  # the negative control


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"kind": "files", "path": "x"}}, r"data\.order = 'streams'"),
        ({"model": {"position": {"kind": "learned"}}}, "positions that are distances"),
        ({"model": {"position": ROPE, "attention": {"kind": "linear"}}}, "use no memory"),
        ({"model": {"position": ROPE, "attention": {"kind": "latent"}}, "kind": "hidden"}, "use kv"),
        ({"compile": "on"}, "is not compiled"),
        (
            {"distill": {"kind": "logits", "teacher": "runs/x"}},
            "a teacher that reads each row without",
        ),
    ],
)
def test_what_cannot_have_a_memory_is_refused(changes: dict[str, Any], words: str) -> None:
    train = {"memory": {"kind": changes.get("kind", "kv")}, "compile": changes.get("compile", "auto")}
    data = changes.get("data", {"kind": "files", "path": "x", "order": "streams"})
    model = changes.get("model", {"position": ROPE})
    optim = {"distill": changes["distill"]} if "distill" in changes else {}
    with pytest.raises(ConfigError, match=words):
        validate({"model": model, "data": data, "optim": optim, "train": train}, origin="test")


def test_a_run_with_a_memory_resumes_to_the_bit_and_is_scored_with_any(
    tmp_path: Path,
    tiny_text: Path,
    tiny_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from bonsaigpt.checkpoint import RunDirectory

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
    (tmp_path / "text.txt").write_text(tiny_text.read_text())
    flags = ["--data.path", "text.txt", "--data.tokenizer.kind", "chars", *tiny_flags, "--data.order", "streams"]
    flags += ["--model.position.kind", "rope", "--train.memory.kind", "kv", "--train.memory.length", "16"]
    steps = ["--train.eval_interval", "4", "--train.steps"]
    assert main(["train", "my-text", *flags, *steps, "12", "--name", "whole"]) == 0
    assert main(["train", "my-text", *flags, *steps, "8", "--optim.schedule.kind", "constant", "--name", "cut"]) == 0
    assert main(["train", "my-text", *flags, *steps, "12", "--optim.schedule.kind", "constant", "--name", "on"]) == 0
    assert main(["train", "runs/cut", "--resume", "--train.steps", "12"]) == 0
    one, two = (RunDirectory.open(Path("runs") / name).load("12").model for name in ("cut", "on"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    capsys.readouterr()
    losses = []
    for words in ([], ["--memory", "16"], ["--memory", "0"], ["--memory", "3"]):
        assert main(["eval", "runs/whole@12", "--json", *words]) == 0
        losses.append(capsys.readouterr().out.partition('"loss": ')[2].partition(",")[0])
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    for words in (["--details"], ["--stride", "4"], ["--against", "runs/on"]):
        assert main(["eval", "runs/whole@12", *words]) == 2
        assert "runs/whole@12 was trained with a memory, which --details" in capsys.readouterr().err
    assert main(["eval", "runs/whole@12", "--details", "--memory", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"]["value"] == pytest.approx(float(losses[2]), rel=1e-5)
    assert main(["train", "runs/whole", "--resume", "--train.steps", "16", "--train.memory.length", "8"]) == 2
    assert "train.memory.length cannot change" in capsys.readouterr().err
    assert main(["data", "show", "whole", "--order", "streams", "--rows", "2", "--length", "10", "--count", "2"]) == 0
    out = capsys.readouterr().out
    text = tiny_text.read_text()
    assert out.count("starts anew") == 2
    assert "step 1, row 0\n" in out
    assert text[:10].strip() in out
