"""The one thread that decodes. The event loop hands it texts to write and work to do; it hands back what came of them.

Each model has one session, so all its clients' texts go through one step together (continuous batching). How many may
be under way or wait is counted at the door: what does not fit is refused at once, and nothing grows without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from bonsaigpt.errors import BonsaiError
from bonsaigpt.generate import Event, Request, Session
from bonsaigpt.serve.limits import Limits
from bonsaigpt.serve.metrics import Metrics
from bonsaigpt.serve.models import Key, Models
from bonsaigpt.serve.refusals import Refused, invalid

__all__ = ["Job", "Worker"]

T = TypeVar("T")

_POLICIES = 4
"""Sessions of other cache policies than the models' own that are kept; the one that was idle longest goes."""


class Job:
    """Some texts that one client asked for. Of the event loop, but for ``numbers``, which is the worker's."""

    def __init__(self, key: Key, requests: Sequence[Request]) -> None:
        self.key, self.requests = key, requests
        self.numbers: dict[int, int] = {}
        """Of the session, by the place in ``requests``."""
        self.open = len(requests)
        """Texts that have not ended."""
        self.refusal: Refused | None = None
        """Why its texts come to nothing."""
        self.began = time.perf_counter()
        self.begun = False
        """Whether there is a token."""
        self.seconds = 0.0
        """That steps of its session took while it was in them."""
        self._events: list[tuple[int, Event]] = []
        self._arrived = asyncio.Event()

    def put(self, place: int, event: Event) -> None:
        """Something came of one text."""
        self._events.append((place, event))
        self.open -= event.finish is not None
        self._arrived.set()

    async def batches(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """What came since the last look, until all texts have ended.

        Raises:
            Refused: a text failed, or all took too long.
        """
        while self._events or self.open:
            if not self._events:
                await self._arrived.wait()
            self._arrived.clear()
            events, self._events = self._events, []
            if self.refusal is not None:
                raise self.refusal
            for _, event in events:
                if event.error is not None:
                    raise invalid(event.error)
            yield events


class Worker:
    """See the module.

    Args:
        sessions: one of each model, by ``(name, "")``; the worker's alone from now on.
    """

    def __init__(self, models: Models, sessions: dict[Key, Session], limits: Limits, metrics: Metrics) -> None:
        self.models, self._limits, self._metrics = models, limits, metrics
        self._sessions = dict(sessions)
        self._used: dict[Key, float] = {}
        self._jobs: dict[tuple[Key, int], tuple[Job, int]] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._capacity = len(sessions) * limits.rows + limits.queue
        self._texts = 0
        self._seconds = 1.0
        """That a text takes, of late."""

    # ------------------------------------------------------------------ of the event loop

    def start(self) -> None:
        """Begin; to be called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Stop; texts that are under way are dropped."""
        self._commands.put(self._close)
        self._thread.join()

    @property
    def texts(self) -> int:
        """Texts at work or waiting."""
        return self._texts

    @contextlib.asynccontextmanager
    async def job(self, key: Key, requests: Sequence[Request]) -> AsyncIterator[Job]:
        """Texts to write. They end with the block, whatever happens in it.

        Raises:
            Refused: there is no room.
        """
        self._admit(len(requests))
        job, loop = Job(key, requests), asyncio.get_running_loop()
        self._commands.put(lambda: self._add(job))
        timer = loop.call_later(self._limits.seconds, self._expire, job)
        try:
            yield job
        finally:
            timer.cancel()
            if job.open:
                self._commands.put(lambda: self._cancel(job))

    async def call(self, work: Callable[[], T]) -> T:
        """What the work returns or raises, done by the thread that decodes, between two steps.

        Raises:
            Refused: there is no room.
        """
        self._admit(1)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def do() -> None:
            value: T | None = None
            error: Exception | None = None
            try:
                if not done.cancelled():
                    value = work()
            except Exception as raised:
                error = raised
            self._tell(lambda: self._settle(done, value, error))

        self._commands.put(do)
        return await done

    def _settle(self, done: asyncio.Future[T], value: T | None, error: Exception | None) -> None:
        self._texts -= 1
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)  # type: ignore[arg-type]  # T itself may allow None

    def _admit(self, count: int) -> None:
        if self._texts + count > self._capacity:
            rounds = max(1, self._texts // (self._limits.rows * len(self.models.served)))
            wait = min(60, max(1, math.ceil(self._seconds * rounds)))
            self._metrics.refused += 1
            raise Refused(
                429,
                f"The server is busy with {self._texts} texts: try again in {wait} s.",
                code="queue_full",
                headers={"retry-after": str(wait)},
            )
        self._texts += count

    def _expire(self, job: Job) -> None:
        job.refusal = Refused(503, "The time for this request is over: ask for fewer tokens.", code="timeout")
        self._commands.put(lambda: self._cancel(job))

    def _deliver(self, events: list[tuple[Job, int, Event]]) -> None:
        now = time.perf_counter()
        for job, place, event in events:
            if event.token is not None:
                self._metrics.tokens += 1
                if not job.begun:
                    job.begun = True
                    self._metrics.first_token.add(now - job.began)
            if event.finish is not None:
                self._texts -= 1
                self._seconds += 0.1 * (now - job.began - self._seconds)
            job.put(place, event)
            if not job.open:
                self._metrics.duration.add(now - job.began)

    # ------------------------------------------------------------------ of the thread

    def _tell(self, what: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(what)

    def _run(self) -> None:
        while not self._closing:
            busy = [(key, session) for key, session in self._sessions.items() if session.busy]
            with contextlib.suppress(queue.Empty):
                if not busy:
                    self._obey(self._commands.get())
                while True:
                    self._obey(self._commands.get_nowait())
            for key, session in busy:
                self._step(key, session)

    def _close(self) -> None:
        self._closing = True

    def _obey(self, command: Callable[[], None]) -> None:
        try:
            command()
        except Exception:  # whoever waits for it runs out of time; nobody else does
            traceback.print_exc(file=sys.stderr)

    def _step(self, key: Key, session: Session) -> None:
        began = time.perf_counter()
        try:
            events = session.step()
        except Exception:  # ours to mend; the clients' texts are lost, the next one gets a new session
            traceback.print_exc(file=sys.stderr)
            self._drop(key)
            lost = [number for at, number in self._jobs if at == key]
            for number in lost:
                self._jobs[key, number][0].refusal = Refused(503, "The server lost this text: try again.", code="lost")
            events = [Event(number, finish="failed") for number in lost]
        seconds = time.perf_counter() - began
        told: list[tuple[Job, int, Event]] = []
        for event in events:
            if (found := self._jobs.get((key, event.request))) is not None:
                told.append((*found, event))
                if event.finish is not None:
                    del self._jobs[key, event.request]
        for job in {found for found, _, _ in told}:
            job.seconds += seconds
        if told:
            self._tell(lambda: self._deliver(told))

    def _add(self, job: Job) -> None:
        """Give the job's texts to its session: all, or none if one is refused."""
        added: list[int] = []
        session: Session | None = None
        try:
            session = self._session(job.key)
            for place, request in enumerate(job.requests):
                added.append(session.add(request))
                job.numbers[place] = added[-1]
        except BonsaiError as error:
            job.refusal = invalid(str(error))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            job.refusal = Refused(503, "The server cannot do this now.", code="lost")
        if len(added) == len(job.requests):
            self._jobs |= {(job.key, number): (job, place) for place, number in enumerate(added)}
            return
        for number in added:
            assert session is not None
            session.cancel(number)
        ended = [(job, place, Event(-1, finish="cancelled")) for place in range(len(job.requests))]
        self._tell(lambda: self._deliver(ended))

    def _cancel(self, job: Job) -> None:
        session = self._sessions.get(job.key)
        for number in job.numbers.values():
            found = self._jobs.get((job.key, number))
            if session is not None and found is not None and found[0] is job:  # a new session counts from 0 again
                session.cancel(number)

    def _session(self, key: Key) -> Session:
        if key not in self._sessions:
            others = [k for k in self._sessions if k[1] and not self._sessions[k].busy]
            for old in sorted(others, key=lambda k: self._used[k])[: max(0, len(others) + 1 - _POLICIES)]:
                self._drop(old)
            self._sessions[key] = self.models.session(key)
        self._used[key] = time.monotonic()
        return self._sessions[key]

    def _drop(self, key: Key) -> None:
        del self._sessions[key]
        self._used.pop(key, None)
