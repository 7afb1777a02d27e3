"""A task done on a stream of pieces by several processes, with the results in the order of the pieces.

Processes, not threads: cleaning, hashing and small documents are Python, which threads take in turns. A piece goes to
whichever process is free, at most a few are under way, so memory does not grow with the stream. A process ends when
ours does, however that happens: its pipe is closed then.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from bonsaigpt.errors import DataError

__all__ = ["cores", "in_order"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_order(
    task: Callable[[Piece], Result], pieces: Iterable[Piece], *, workers: int
) -> Generator[Result, None, None]:
    """``task`` of each piece, in the order of the pieces. Close the iterator if it is not used up.

    Args:
        task: can be pickled, as pieces and results can.
        workers: processes to start; 0 does all the work in this one.

    Raises:
        DataError: a process was killed. Whatever ``task`` raises comes out as it is.
    """
    if workers == 0:
        yield from map(task, pieces)
        return
    crew = [_Worker(task) for _ in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def call(piece: Piece) -> Result:
        worker = idle.get()
        try:
            return worker(piece)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(workers)
    under_way: deque[Future[Result]] = deque()
    try:
        for piece in pieces:
            under_way.append(threads.submit(call, piece))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for worker in crew:
            worker.stop()
        threads.shutdown(cancel_futures=True)


class _Worker:
    """A process that waits for pieces."""

    def __init__(self, task: Callable[[Any], Any]) -> None:
        # A fresh interpreter: a fork of ours would have the locks of torch's threads, but not the threads.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # The task comes over the pipe, too: what `multiprocessing` hands to a new process should be small, as that
        # prints a traceback if we are killed halfway.
        self._first: list[Any] = [task]
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, piece: Any) -> Any:
        try:
            while self._first:
                self._connection.send(self._first.pop())
            self._connection.send(piece)
            done, result = self._connection.recv()
        except (EOFError, OSError):
            raise DataError(
                "a worker process was ended from outside, perhaps because memory ran out: the same command goes on "
                "where this one stopped; fewer --workers need less memory."
            ) from None
        if not done:
            raise result
        return result

    def stop(self) -> None:
        self._process.terminate()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    try:
        task: Callable[[Any], Any] = connection.recv()
        while True:
            piece = connection.recv()
            try:
                answer = True, task(piece)
            except Exception as error:
                answer = False, error
            connection.send(answer)
    except (EOFError, OSError):
        return  # nobody listens any more
