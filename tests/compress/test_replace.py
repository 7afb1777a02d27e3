"""Blocks replaced one after the other: exact where the structures can be, taken back where the loss rises, and the same
function whether its weights stand as factors or as matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.compress.plan import Plan, blocks_of, read_plan, write_plan
from bonsaigpt.compress.pricing import choose, chosen_weights, price
from bonsaigpt.compress.replace import Compressed, replace_blocks
from bonsaigpt.compress.run import healing_config
from bonsaigpt.compress.subject import Advance, Subject, silent
from bonsaigpt.config import (
    KroneckerStructure,
    LowRankStructure,
    MonarchStructure,
    NarrowStructure,
    RunConfig,
    StructureConfig,
    derive,
    validate,
)
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.errors import CheckpointError, ConfigError
from bonsaigpt.spec import parameter_count, parameters
from bonsaigpt.structure import structures

WTE = "transformer.wte.weight"
FC, PROJ = "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("torch", device="cpu", threads=1, workers=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, engine: Engine) -> tuple[RunConfig, Subject]:
    """Two layers of width 16 after a hundred steps."""
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": True}
    data = {"kind": "files", "path": str(tiny_text), "tokenizer": {"kind": "chars"}}
    train = {"steps": 100, "device": "cpu", "precision": "fp32", "compile": "off", "workers": 1, "micro_batch": 12}
    settings = {"model": model, "data": data, "train": train | {"attention_kernel": "sdpa"}, "optim": {"lr": 1e-2}}
    config = validate(settings, origin="t")
    source = open_source(config, tmp_path_factory.mktemp("corpora"))
    config = derive(config, model={"vocab_size": source.tokenizer.vocab_size})
    state = engine.init(config)
    for step in range(100):
        engine.step(state, source.batch_at(step), config=config, share=1.0, step=step)
    return config, Subject(engine, config.model, engine.arrays(state)[0], source, tokens=2000)


def plan(**settings: StructureConfig) -> dict[str, StructureConfig]:
    names = {"fc": FC, "proj": PROJ, "mlp": "transformer.h.0.mlp", "late": FC.replace("0", "1")}
    return {names[name]: setting for name, setting in settings.items()}


def loss_of(subject: Subject, compressed: Compressed) -> float:
    return subject.validate(subject.engine.model(compressed.config, compressed.values))


FULL = plan(fc=KroneckerStructure(a_shape=(8, 4), terms=32), proj=LowRankStructure(rank=16))
SMALL = plan(fc=KroneckerStructure(a_shape=(8, 4), terms=4), proj=LowRankStructure(rank=3))


@pytest.mark.parametrize("init", ["activations", "weight"])
def test_structures_that_can_be_any_matrix_change_nothing(init: str, trained: tuple[RunConfig, Subject]) -> None:
    subject = trained[1]
    found = replace_blocks(subject, Plan(FULL, init=init))  # type: ignore[arg-type]
    assert found.loss == pytest.approx(found.dense_loss, abs=1e-4)
    small = replace_blocks(subject, Plan(SMALL, init=init))  # type: ignore[arg-type]
    assert small.loss > small.dense_loss + 1e-3


@pytest.mark.parametrize("init", ["activations", "weight", "random", "distilled"])
def test_the_factors_are_what_was_measured(init: str, trained: tuple[RunConfig, Subject]) -> None:
    subject = trained[1]
    late = plan(late=MonarchStructure(a_shape=(8, 4), rank=2))
    found = replace_blocks(subject, Plan(SMALL | late, init=init, permute=True))  # type: ignore[arg-type]
    assert [step.block for step in found.steps] == ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    assert found.loss == pytest.approx(loss_of(subject, found), abs=1e-5)
    assert {n: v.shape for n, v in found.values.items()} == {
        p.name: p.shape for p in parameters(found.config) if p.tied_to is None
    }
    made = structures(found.config)
    assert found.steps[-1].stored == parameter_count(found.config) == sum(v.size for v in found.values.values())
    assert made[FC].factored
    assert all(v.dtype == np.float32 for v in found.values.values())
    assert sum(step.cost for step in found.steps) == pytest.approx(found.loss - found.dense_loss)
    again = replace_blocks(subject, Plan(SMALL | late, init=init, permute=True))  # type: ignore[arg-type]
    assert all(again.values[n].tobytes() == v.tobytes() for n, v in found.values.items())


def test_better_initialisers_cost_less(trained: tuple[RunConfig, Subject]) -> None:
    subject, costs = trained[1], {}
    for init in ("random", "weight", "activations"):
        found = replace_blocks(subject, Plan(SMALL, init=init))  # type: ignore[arg-type]
        costs[init] = found.loss - found.dense_loss
    assert costs["activations"] < costs["weight"] < costs["random"]


@pytest.mark.parametrize(("tied", "name"), [(True, WTE), (False, WTE), (False, "lm_head.weight")])
def test_tables_and_heads_are_fitted_to_what_they_are_for(
    tied: bool, name: str, trained: tuple[RunConfig, Subject]
) -> None:
    """A head to its logits on real inputs, and one that is tied too; rows that are only looked up by how often."""
    config, subject = trained[0].model.model_copy(update={"tie_embeddings": tied}), trained[1]
    values = subject.values if tied else subject.values | {"lm_head.weight": subject.values[WTE]}
    own, costs = replace(subject, config=config, values=values), {}
    for init in ("weight", "activations"):
        found = replace_blocks(own, Plan({name: LowRankStructure(rank=6)}, init=init))  # type: ignore[arg-type]
        costs[init] = found.loss - found.dense_loss
        assert found.loss == pytest.approx(loss_of(own, found), abs=1e-5)
    assert costs["activations"] < (0.99 if tied else 0.95) * costs["weight"]  # a tied one is looked up all the same


def test_pruning_keeps_rows_and_refuses_what_it_cannot_make(trained: tuple[RunConfig, Subject]) -> None:
    subject = trained[1]
    one = plan(fc=KroneckerStructure(a_shape=(32, 16), terms=1))
    found = replace_blocks(subject, Plan(one, init="pruned"))
    assert np.allclose(found.values[f"{FC}.A"][0], subject.values[FC][::2], atol=1e-6)
    with pytest.raises(ConfigError, match="use another --init"):
        replace_blocks(subject, Plan(SMALL, init="pruned"))


def test_a_narrow_mlp_is_refitted(trained: tuple[RunConfig, Subject]) -> None:
    subject = trained[1]
    narrow = plan(mlp=NarrowStructure(hidden=20))
    found, even = (replace_blocks(subject, Plan(narrow, init=init)) for init in ("activations", "weight"))
    assert found.values[FC].shape == (20, 16)
    assert found.values["transformer.h.0.mlp.c_fc.bias"].shape == (20,)
    assert found.loss == pytest.approx(loss_of(subject, found), abs=1e-5)
    assert found.loss < even.loss


def test_a_block_that_costs_too_much_grows_or_stays_dense(trained: tuple[RunConfig, Subject]) -> None:
    subject = trained[1]
    free = replace_blocks(subject, Plan(SMALL))
    [step] = replace_blocks(subject, Plan(SMALL), allowed=lambda number, count: free.steps[0].cost / 2).steps
    assert step.attempts > 1
    assert step.cost <= free.steps[0].cost / 2
    assert step.stored > free.steps[0].stored
    never = replace_blocks(subject, Plan(SMALL), allowed=lambda number, count: -1.0)
    assert not never.steps[0].settings
    assert never.loss == never.dense_loss
    assert all(never.values[n].tobytes() == v.tobytes() for n, v in subject.values.items())


def test_a_loss_that_is_no_number_is_refused_with_the_block(trained: tuple[RunConfig, Subject]) -> None:
    subject = trained[1]
    spoilt = replace(subject, values=subject.values | {PROJ: np.full_like(subject.values[PROJ], np.nan)})
    with pytest.raises(CheckpointError, match=r"before anything is compressed.*RUN@STEP"):
        replace_blocks(spoilt, Plan(SMALL))

    class Failing(Subject):
        def validate(self, model: object, advance: Advance = silent) -> float:
            return super().validate(model, advance) if model is self.model else float("nan")

    with pytest.raises(ConfigError, match=r"transformer\.h\.0\.mlp loses itself as kronecker and lowrank.*--init"):
        replace_blocks(Failing(subject.engine, subject.config, subject.values, subject.source, 2000), Plan(SMALL))


def test_a_plan_keeps_its_budget_and_predicts(trained: tuple[RunConfig, Subject]) -> None:
    _, subject = trained
    offers = price(subject, ("kronecker", "lowrank"), ["*.mlp.*"], 0.5)
    dense = sum(offer.dense.stored for offer in offers)
    assert [offer.name for offer in offers] == list(chosen_weights(subject.config, ["*.mlp.*"]))
    made, chosen = choose(offers, budget=dense // 2)
    assert dense // 2 >= sum(option.stored for option in chosen.values()) > 0.9 * dense // 2
    found = replace_blocks(subject, made)
    assert parameter_count(subject.config) - parameter_count(found.config) >= dense // 2
    loose, _ = choose(offers, loss=1.0)
    tight, chosen = choose(offers, loss=0.0)
    assert sum(option.loss for option in chosen.values()) == 0.0
    assert len(loose.structure) >= len(tight.structure)
    with pytest.raises(ConfigError, match="too few for these weights"):
        choose(offers, budget=3)


def test_narrow_offers_are_of_whole_mlps(trained: tuple[RunConfig, Subject]) -> None:
    subject = trained[1]
    offers = price(subject, ("narrow",), ["*.mlp.*"], 0.5)
    assert [offer.name for offer in offers] == ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    made, _ = choose(offers, budget=2048)
    assert replace_blocks(subject, made).config.hidden_of(0) < 64


def test_weights_are_chosen_by_name(trained: tuple[RunConfig, Subject]) -> None:
    config = trained[1].config
    assert all(".attn." in name for name in chosen_weights(config, ["*.attn.*"]))
    with pytest.raises(ConfigError, match=r"matches no weight.*\*\.mlp\.\*"):
        chosen_weights(config, ["*.mpl.*"])
    taken = config.model_copy(update={"structure": SMALL})
    with pytest.raises(ConfigError, match="structured already"):
        chosen_weights(taken, ["*.mlp.*"])
    assert blocks_of(config, list(config.weight_shapes))[1] == [
        "transformer.wpe.weight"
    ]  # an embedding is a block of its own
    assert len(blocks_of(config, list(config.weight_shapes))) == 2 + 2 * 2


def test_a_plan_is_a_file_that_comes_back(trained: tuple[RunConfig, Subject], tmp_path: Path) -> None:
    config, path = trained[0], tmp_path / "plan.toml"
    whole = Plan(SMALL | plan(late=LowRankStructure(rank=2)), init="weight", permute=True, predicted={FC: 0.25})
    write_plan(path, whole)
    assert "predicted +0.2500 nats" in path.read_text()
    found = read_plan(path, config)
    assert dict(found.structure) == dict(whole.structure)
    assert (found.init, found.permute) == ("weight", True)
    path.write_text('[structure]\n"*.c_fc.weight" = {kind = "lowrank", rank = 2}\n"*.1.mlp" = {kind="narrow",hidden=8}')
    assert set(read_plan(path, config).structure) == {FC, FC.replace("0", "1"), "transformer.h.1.mlp"}
    assert found.applied(config).model.structure_of(FC).kind == "kronecker"


def test_healing_takes_every_tensor_by_its_own_size(trained: tuple[RunConfig, Subject]) -> None:
    config, subject = trained
    made = replace_blocks(subject, Plan(SMALL))
    healing = healing_config(config, made, steps=40, teacher="runs/x@100")
    scales = healing.optim.lr_scale
    assert set(scales) == set(made.values)
    for name in (f"{FC}.A", f"{FC}.B"):
        assert scales[name] == pytest.approx(np.sqrt(np.mean(np.square(made.values[name]))), rel=1e-2)
    assert healing.model == made.config
    assert healing.train.steps == 40
    assert healing.optim.distill.kind == "logits"
    assert healing.left_open

    settings = derive(
        healing_config(config, made, steps=40, teacher=None),
        train={"workers": 1, "micro_batch": 12, "compile": "off", "attention_kernel": "sdpa"},
    )
    state = subject.engine.init(settings, made.values)
    for step in range(40):
        share = 1 - step / 40
        subject.engine.step(state, subject.source.batch_at(step), config=settings, share=share, step=step)
    assert subject.validate(subject.engine.model_of(state)) < made.loss
