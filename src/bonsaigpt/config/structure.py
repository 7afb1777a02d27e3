"""What a weight is made of: a tagged union, chosen by the names of weights in ``model.structure``.

A setting says only what the weight's own shape does not; what it amounts to (factors, parameters, operations, rank) is
counted in ``bonsaigpt.structure``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from bonsaigpt.config.base import Config

__all__ = [
    "DenseStructure",
    "DoraStructure",
    "KroneckerColumnsStructure",
    "KroneckerStructure",
    "LokrStructure",
    "LoraStructure",
    "LowRankStructure",
    "MonarchStructure",
    "NarrowStructure",
    "StructureConfig",
    "WeightStructure",
    "check_experts",
    "check_names",
    "chosen",
    "hidden_side",
]


class DenseStructure(Config):
    """A matrix as it is; in a map it exempts weights from an earlier entry."""

    kind: Literal["dense"] = "dense"
    """Which structure."""

    def check(self, name: str, out: int, into: int) -> None:
        """Raise ``ValueError`` if the weight ``name`` of (out, into) cannot be so."""


class KroneckerStructure(Config):
    """A sum of Kronecker products, W = s_1 A_1 (x) B_1 + ... + s_R A_R (x) B_R (Van Loan and Pitsianis 1993)."""

    kind: Literal["kronecker"] = "kronecker"
    """Which structure."""
    a_shape: tuple[int, int]
    """Rows and columns of each A: divisors of the weight's outputs and inputs. B has what is left."""
    terms: int = Field(default=1, ge=1)
    """Products in the sum; as many as A or B has elements (the smaller of both) can be any matrix."""
    scalers: bool = False
    """Learn a factor s_r for each term beside A_r and B_r, which adds no function, only another learning rate."""

    def check(self, name: str, out: int, into: int) -> None:
        """Raise ``ValueError`` if the weight ``name`` of (out, into) cannot be so."""
        _check_divides("a_shape", self.a_shape, name, out, into)
        m1, n1 = self.a_shape
        most = min(m1 * n1, (out // m1) * (into // n1))
        if self.terms > most:
            raise ValueError(
                f"terms = {self.terms} of {m1}x{n1} (x) {out // m1}x{into // n1} for {name}: {most} can be any matrix "
                f"of {out} x {into}, so use at most {most}"
            )


class KroneckerColumnsStructure(KroneckerStructure):
    """A sum of Kronecker products plus a sparse matrix: a few columns, of the inputs that matter most, kept dense
    (after Thakker et al. 2020, doped Kronecker products)."""

    kind: Literal["kronecker+sparse"] = "kronecker+sparse"  # type: ignore[assignment]
    """Which structure."""
    columns: tuple[int, ...] = Field(min_length=1)
    """The inputs whose columns are added, counted from 0. They are no trained values, so they are kept here."""

    def check(self, name: str, out: int, into: int) -> None:
        """Raise ``ValueError`` if the weight ``name`` of (out, into) cannot be so."""
        super().check(name, out, into)
        if len(set(self.columns)) != len(self.columns) or min(self.columns) < 0 or max(self.columns) >= into:
            raise ValueError(f"columns for {name} must be different numbers of its inputs, 0 to {into - 1}")


class LowRankStructure(Config):
    """A product of two thin matrices, W = U V."""

    kind: Literal["lowrank"] = "lowrank"
    """Which structure."""
    rank: int = Field(ge=1)
    """Columns of U and rows of V."""

    def check(self, name: str, out: int, into: int) -> None:
        """Raise ``ValueError`` if the weight ``name`` of (out, into) cannot be so."""
        if self.rank > min(out, into):
            raise ValueError(
                f"rank = {self.rank} for {name}: {min(out, into)} can be any matrix of {out} x {into}, so use at most "
                "that"
            )


class MonarchStructure(Config):
    """Two block-diagonal matrices with a permutation between them (Dao et al. 2022), of any rank: a tensor train of
    blocks (Qiu et al. 2024)."""

    kind: Literal["monarch"] = "monarch"
    """Which structure."""
    a_shape: tuple[int, int]
    """Outputs of each block on the output's side, and number of blocks on the input's side: divisors of the weight's
    outputs and inputs, as in a Kronecker product of one term, whose shape it has."""
    rank: int = Field(default=1, ge=1)
    """Rank of each slice; 1 is Monarch."""

    def check(self, name: str, out: int, into: int) -> None:
        """Raise ``ValueError`` if the weight ``name`` of (out, into) cannot be so."""
        _check_divides("a_shape", self.a_shape, name, out, into)
        m1, n1 = self.a_shape
        most = min(m1, into // n1)
        if self.rank > most:
            raise ValueError(f"rank = {self.rank} for {name}: slices are {m1} x {into // n1}, so use at most {most}")


class LoraStructure(Config):
    """A dense matrix and a low-rank change of it, W + alpha / rank U V (Hu et al. 2021): U begins at zero."""

    kind: Literal["lora"] = "lora"
    """Which structure."""
    rank: int = Field(default=8, ge=1)
    """Columns of U and rows of V."""
    alpha: float = Field(default=16.0, gt=0.0)
    """Scale of the change, over its rank."""

    def check(self, name: str, out: int, into: int) -> None:
        """Raise ``ValueError`` if the weight ``name`` of (out, into) cannot be so."""
        LowRankStructure(rank=self.rank).check(name, out, into)


class DoraStructure(LoraStructure):
    """LoRA whose rows keep the length that the matrix had, times a trained factor each (Liu et al. 2024)."""

    kind: Literal["dora"] = "dora"  # type: ignore[assignment]
    """Which structure."""


class LokrStructure(Config):
    """A dense matrix and a change of it by Kronecker products, W + alpha / terms (A_1 (x) B_1 + ...) (Edalati et al.
    2022, KronA; LyCORIS): B begins at zero."""

    kind: Literal["lokr"] = "lokr"
    """Which structure."""
    a_shape: tuple[int, int]
    """Rows and columns of each A: divisors of the weight's outputs and inputs. B has what is left."""
    terms: int = Field(default=1, ge=1)
    """Products in the sum."""
    alpha: float = Field(default=1.0, gt=0.0)
    """Scale of the change, over the number of products."""

    def check(self, name: str, out: int, into: int) -> None:
        """Raise ``ValueError`` if the weight ``name`` of (out, into) cannot be so."""
        KroneckerStructure(a_shape=self.a_shape, terms=self.terms).check(name, out, into)


class NarrowStructure(Config):
    """An MLP with fewer hidden units: not a structure of one weight, but of all that meet in its hidden layer. Its
    name is the MLP's, e.g. ``transformer.h.0.mlp``; the narrower weights may be structured in their turn."""

    kind: Literal["narrow"] = "narrow"
    """Which structure."""
    hidden: int = Field(ge=1)
    """Hidden units."""


WeightStructure: TypeAlias = (
    DenseStructure
    | KroneckerStructure
    | KroneckerColumnsStructure
    | LowRankStructure
    | MonarchStructure
    | LoraStructure
    | DoraStructure
    | LokrStructure
)
"""Of one weight."""
StructureConfig = Annotated[WeightStructure | NarrowStructure, Field(discriminator="kind")]


def chosen(structure: Mapping[str, StructureConfig], name: str, *, narrow: bool = False) -> StructureConfig | None:
    """What a map of globs says of one name, the last match; ``narrow``: it is an MLP's, not a weight's."""
    of_its_sort = ((glob, s) for glob, s in structure.items() if isinstance(s, NarrowStructure) == narrow)
    matches = [s for glob, s in of_its_sort if fnmatchcase(name, glob)]
    return matches[-1] if matches else None


def check_names(structure: Mapping[str, StructureConfig], weights: Iterable[str], mlps: Iterable[str]) -> None:
    """Raise ``ValueError`` for a glob that matches nothing, with the names that are near."""
    names = {False: list(weights), True: list(mlps)}
    for glob, setting in structure.items():
        narrow = isinstance(setting, NarrowStructure)
        if any(fnmatchcase(name, glob) for name in names[narrow]):
            continue
        # Names of the layers differ in a number only: those of one layer are enough to be near.
        known = [*names[narrow], *dict.fromkeys(map(_any_layer, names[narrow]))]
        near = difflib.get_close_matches(glob, known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" The first is {names[narrow][0]!r}."
        what = "MLP" if narrow else "weight"
        raise ValueError(f"'{glob}' in model.structure matches no {what} of this model.{hint}")


def hidden_side(name: str) -> int | None:
    """Which side of a weight are the hidden units of an MLP: 0 outputs (c_fc, c_gate), 1 inputs (c_proj); or None."""
    return {"mlp.c_fc.weight": 0, "mlp.c_gate.weight": 0, "mlp.c_proj.weight": 1}.get(".".join(name.split(".")[-3:]))


def check_experts(setting: WeightStructure, name: str, side: int, experts: int) -> None:
    """Raise ``ValueError`` if the hidden units on a side of a weight cannot be parted among so many experts."""
    if isinstance(setting, KroneckerColumnsStructure) and side == 1:
        raise ValueError(
            f"'kronecker+sparse' keeps inputs of {name} for every token, but these are experts' hidden units, which "
            "few tokens have: use 'kronecker'"
        )
    if isinstance(setting, KroneckerStructure | MonarchStructure) and setting.a_shape[side] % experts:
        raise ValueError(
            f"a_shape = {list(setting.a_shape)} of {name}: {setting.a_shape[side]} {('rows', 'columns')[side]} of A do "
            f"not part among {experts} experts; use a multiple of {experts}"
        )


def _any_layer(name: str) -> str:
    words = name.split(".")
    return ".".join("*" if word.isdecimal() else word for word in words).replace("transformer.h.*", "*", 1)


def _check_divides(field: str, a_shape: tuple[int, int], name: str, out: int, into: int) -> None:
    for part, whole, side in zip(a_shape, (out, into), ("outputs", "inputs"), strict=True):
        if part < 1 or whole % part:
            legal = ", ".join(str(d) for d in range(1, whole + 1) if whole % d == 0)
            raise ValueError(
                f"{field} = {list(a_shape)} does not fit {name} of {out} x {into}: {part} does not divide its {whole} "
                f"{side}; use one of {legal}"
            )
