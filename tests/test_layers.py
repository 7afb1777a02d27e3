"""The house has floors (see docs/design.md): imports point down only, and torch stays on its floor."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import bonsaigpt

SOURCE = Path(bonsaigpt.__file__).parent

FLOORS = [
    {"errors", "randomness", "files", "polar", "processes", "progress", "trace", "units"},
    {"config"},
    {"structure"},
    {"spec", "kv", "sampling", "recipes", "room"},
    {"data"},
    {"checkpoint"},
    {"engines", "torch_engine", "jax_engine"},
    {"measure", "generate"},
    {"train"},
    {"adapt", "compress"},
    {"interop"},
    {"report"},
    {"study"},
    {"serve"},
    {"watch"},
    {"api", "cli", "__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def modules() -> list[str]:
    """Dotted names of all modules, relative to the package."""
    found = pkgutil.walk_packages([str(SOURCE)], prefix="bonsaigpt.")
    return sorted(m.name for m in found)


def imports_of(tree: ast.AST) -> set[str]:
    """Dotted names that a module imports anywhere, lazily too; not what is for type checkers only."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def violations(module: str, tree: ast.AST) -> list[str]:
    """Imports of one module that point up, and engines' libraries above or below their floor."""
    parts = module.split(".")
    here = FLOOR[parts[1]]
    bad: list[str] = []
    for name in sorted(imports_of(tree)):
        target = name.split(".")
        if target[0] == "bonsaigpt" and len(target) > 1 and target[1] in FLOOR:
            up = FLOOR[target[1]] > here
            sideways = target[1] != parts[1] and FLOOR[target[1]] == here == FLOOR["engines"]
            if up or sideways:
                bad.append(f"{module} imports {name}")
        if target[0] == "torch" and parts[1] != "torch_engine":
            bad.append(f"{module} imports torch")
        if target[0] in ("jax", "optax") and parts[1] != "jax_engine":
            bad.append(f"{module} imports jax")
    return bad


def test_imports_point_down() -> None:
    bad: list[str] = []
    for module in modules():
        path = SOURCE.parent / Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        bad += violations(module, ast.parse(file.read_text(encoding="utf-8")))
    assert not bad


def test_the_check_sees_a_violation() -> None:
    upward = ast.parse("def f():\n    from bonsaigpt.train import train\n    import torch\n")
    assert violations("bonsaigpt.data.batches", upward) == [
        "bonsaigpt.data.batches imports bonsaigpt.train",
        "bonsaigpt.data.batches imports bonsaigpt.train.train",
        "bonsaigpt.data.batches imports torch",
    ]


def test_every_module_has_a_floor_and_a_reasonable_length() -> None:
    for file in SOURCE.rglob("*.py"):
        top = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        assert top in FLOOR or top == "__init__", f"{file} stands on no floor: add it to FLOORS"
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 420, f"{file} is two ideas"


@pytest.mark.parametrize("module", modules())
def test_exported_members(module: str) -> None:
    """``__all__`` is sorted, complete and true: every public function and class, nothing that is not there."""
    if module.endswith("__main__"):
        return
    loaded = importlib.import_module(module)
    exported = getattr(loaded, "__all__", None)
    own = {
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module and callable(value)
    }
    if exported is None:
        assert not own, f"{module} has no __all__ but defines {sorted(own)}"
        return
    assert list(exported) == sorted(exported, key=lambda n: (not n.isupper(), not n[0].isupper(), n)), module
    for name in exported:
        assert hasattr(loaded, name), f"{module}.__all__ names {name}, which is not there"


def test_help_needs_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; from bonsaigpt.cli import main; main(['--help']); "
        "heavy = {'torch', 'pydantic', 'numpy', 'rich', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bonsai train" in done.stdout
