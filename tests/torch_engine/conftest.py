"""What tests of the C++ need."""

from __future__ import annotations

import pytest

from tests.torch_engine.decoders import need_cpp


@pytest.fixture
def cpp() -> None:
    """The library in C++; without a compiler the test is skipped."""
    need_cpp()
