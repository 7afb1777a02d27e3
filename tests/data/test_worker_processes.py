"""Worker processes: order, errors, deaths."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from bonsaigpt.data.pool import in_order
from bonsaigpt.errors import BonsaiError, DataError


def uneven(number: int) -> int:
    """Later pieces are done sooner."""
    time.sleep(0.02 * (number % 3 == 0))
    return number * number


def refuses_three(number: int) -> int:
    if number == 3:
        raise DataError("piece 3 is not UTF-8: convert it")
    return number


def dies(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(in_order(uneven, range(20), workers=workers)) == [n * n for n in range(20)]


def test_only_a_few_pieces_are_under_way() -> None:
    taken = 0

    def pieces() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    with closing(in_order(uneven, pieces(), workers=1)) as results:
        for done, _ in enumerate(results, start=1):
            assert taken - done <= 3
            if done == 10:
                break


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_out_as_it_is(workers: int) -> None:
    with closing(in_order(refuses_three, range(9), workers=workers)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="piece 3 is not UTF-8"):
            next(results)


def test_a_worker_that_was_killed_is_said_so() -> None:
    with pytest.raises(BonsaiError, match=r"ended from outside.*--workers"):
        list(in_order(dies, range(9), workers=1))
