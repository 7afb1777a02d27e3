"""What tests of the C++ need."""

from __future__ import annotations

import pytest

from bonsaigpt.torch_engine.native.building import Missing, load_library


@pytest.fixture
def cpp() -> None:
    """The library in C++; without a compiler the test is skipped."""
    try:
        load_library()
    except Missing as why:
        pytest.skip(f"no C++ here: {why}")
