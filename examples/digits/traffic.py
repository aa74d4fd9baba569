"""Sends real held-out digits to a service at a steady rate and, a little later, what people read in some of them.

Arrivals are scheduled ahead (a Poisson process) and never wait for an answer, so a slow service sees the load of a
fast one; only a bound on the requests in flight holds an arrival back, and that is counted as `skipped`.

    python examples/digits/traffic.py --url http://127.0.0.1:8080 --rate 1000 --label-rate 50 --label-delay 1,3

Stops after --seconds, at SIGINT or at SIGTERM; then one JSON document on stdout says what callers have seen.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from rows import Rows, holdout_rows

LATEST_TICK = 0.001  # a timer of the event loop is no finer; arrivals that are due together leave together
SWEEP_EVERY = 0.5
IDLE_AT_MOST = (
    2.0  # a server may close an idle connection while a request is on its way; so we close it first
)
ANSWER_WITHIN = 10.0
DRAIN_CHECKS = 200  # of 10 ms

Status = int | str
"""An HTTP status, or why there was none: "reset", "refused", "timeout", "malformed"."""

OnAnswer = Callable[[Status, bytes], None]


@dataclass(frozen=True, slots=True)
class Load:
    """What to send where. Rates are per second, times in seconds."""

    url: str
    model: str = "digits"
    rate: float = 1000.0
    label_rate: float = 50.0
    label_delay: tuple[float, float] = (1.0, 3.0)
    seconds: float | None = None
    in_flight: int = 256
    seed: int | None = None
    report_every: float | None = None


@dataclass(slots=True)
class Seen:
    """What the answers of one version were: `right` + `wrong` + `null` + `failed` = `answers`."""

    answers: int = 0
    right: int = 0
    wrong: int = 0
    null: int = 0
    failed: int = 0


@dataclass(slots=True)
class Tally:
    """Counts as callers see them. sent = answered (200) + failed (any other status, or none) + in flight."""

    sent: int = 0
    answered: int = 0
    failed: int = 0
    skipped: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_version: dict[str, Seen] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, status: Status, body: bytes, label: int) -> None:
        """One finished request, whose row people have read as `label`."""
        answer = _json_object(body)
        named = answer.get("model_version")
        seen = self.by_version.setdefault(named if isinstance(named, str) else "unknown", Seen())
        seen.answers += 1
        self.by_status[str(status)] += 1
        if status != 200:
            self.failed += 1
            seen.failed += 1
            return
        self.answered += 1
        prediction = _prediction(answer)
        if prediction is None:
            seen.null += 1
        elif prediction == label:
            seen.right += 1
        else:
            seen.wrong += 1

    def document(self) -> dict[str, object]:
        """The summary as it is printed; `wall` is seconds since 1970, so that it can be laid beside a journal."""
        versions = sorted(self.by_version.items())
        return {
            "schema_version": 1,
            "wall": round(time.time(), 3),
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "skipped": self.skipped,
            "by_status": dict(sorted(self.by_status.items())),
            "by_version": {
                version: {name: getattr(seen, name) for name in Seen.__slots__} for version, seen in versions
            },
            "wrong": sum(seen.wrong for _, seen in versions),
            "null": sum(seen.null for _, seen in versions),
            "labels": {name: self.labels[name] for name in ("posted", "accepted", "failed", "left")},
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it; only answers with a Content-Length are read."""

    __slots__ = ("answer", "on_answer", "pool", "since", "transport")

    def __init__(self, pool: Pool, first: bytes, on_answer: OnAnswer) -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.answer = bytearray(first)  # until the connection is made: what to send
        self.on_answer: OnAnswer | None = on_answer
        self.since = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first request goes out with the connection."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self.pool.opened.add(self)
        first, self.answer = bytes(self.answer), bytearray()
        self.transport.write(first)

    def send(self, request: bytes, on_answer: OnAnswer) -> None:
        """Only for a connection that came out of the pool."""
        assert self.transport is not None
        self.on_answer = on_answer
        self.since = time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Collects until the answer is whole."""
        self.answer += data
        head_end = self.answer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self.answer[:head_end]).lower()
        length = _content_length(head)
        if length is None or self.on_answer is None:
            self.close("malformed")
            return
        body_end = head_end + 4 + length
        if len(self.answer) < body_end:
            return
        status, body = int(head[9:12]), bytes(self.answer[head_end + 4 : body_end])
        self.answer.clear()
        self.since = time.monotonic()
        on_answer, self.on_answer = self.on_answer, None
        if b"\nconnection: close" in head:
            self.close("reset")
        else:
            self.pool.free.append(self)
        on_answer(status, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server went away, or `close` was called."""
        del exc
        self.close("reset")

    def close(self, status: Status) -> None:
        """Ends the connection and, if a request was on it, that request. Safe to repeat."""
        self.pool.forget(self)
        if self.transport is not None:
            self.transport.abort()
        on_answer, self.on_answer = self.on_answer, None
        if on_answer is not None:
            on_answer(status, b"")


class Pool:
    """Connections to one server: the one used last is taken first, a new one is opened when none is free."""

    def __init__(self, host: str, port: int, limit: int) -> None:
        self.host, self.port, self.limit = host, port, limit
        self.free: list[Connection] = []
        self.opened: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self.opened) - len(self.free) + len(self._opening)

    def send(self, request: bytes, on_answer: OnAnswer) -> bool:
        """Sends now, or says no because too many are in flight. `on_answer` is called exactly once."""
        if self.free:
            self.free.pop().send(request, on_answer)
            return True
        if self.in_flight >= self.limit:
            return False
        task = asyncio.get_running_loop().create_task(self._open(request, on_answer))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    def forget(self, connection: Connection) -> None:
        """A connection that is no longer good."""
        self.opened.discard(connection)
        if connection in self.free:
            self.free.remove(connection)

    def sweep(self) -> None:
        """Closes what has been idle for too long and gives up on what has not been answered."""
        now = time.monotonic()
        for connection in list(self.opened):
            age = now - connection.since
            if connection.on_answer is not None and age > ANSWER_WITHIN:
                connection.close("timeout")
            elif connection.on_answer is None and age > IDLE_AT_MOST:
                connection.close("idle")

    def close(self) -> None:
        """Closes everything; a request that is still on its way counts as one without an answer."""
        for connection in list(self.opened):
            connection.close("timeout")

    async def _open(self, request: bytes, on_answer: OnAnswer) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await loop.create_connection(
                    lambda: Connection(self, request, on_answer), self.host, self.port
                )
        except OSError:  # TimeoutError is one, too
            on_answer("refused", b"")


class Traffic:
    """One run: the schedule of requests, the labels that are due later, and the counts."""

    def __init__(self, load: Load, rows: Rows) -> None:
        target = urlsplit(load.url)
        self.load = load
        self.tally = Tally()
        self.pool = Pool(target.hostname or "127.0.0.1", target.port or 80, load.in_flight)
        self.random = random.Random(load.seed)
        self.numbers = itertools.count()
        self.run = secrets.token_hex(
            4
        )  # ids must differ between runs, whatever the seed: a label joins by id
        self.due_labels: list[tuple[float, str, int]] = []
        self.labels = [int(label) for label in rows.labels]
        self.bodies = [_infer_body(pixels) for pixels in rows.pixels.tolist()]
        host = target.netloc
        self.infer_head = _head(f"/v2/models/{load.model}/infer", host)
        self.label_head = _head(f"/v2/models/{load.model}/labels", host)

    async def send_until(self, stop: asyncio.Event) -> None:
        """The whole run, until `stop` is set or the time is over; then a moment for what is in flight."""
        started = time.monotonic()
        next_arrival, next_sweep, next_report = started, started, started
        ends = started + self.load.seconds if self.load.seconds is not None else float("inf")
        while not stop.is_set() and (now := time.monotonic()) < ends:
            while next_arrival <= now:
                self.send_one(now)
                next_arrival += self.random.expovariate(self.load.rate)
            self.post_due_labels(now)
            if now >= next_sweep:
                self.pool.sweep()
                next_sweep = now + SWEEP_EVERY
            if self.load.report_every is not None and now >= next_report:
                _print_report(self.tally)
                next_report += self.load.report_every
            await asyncio.sleep(max(LATEST_TICK, min(next_arrival - now, 0.05)))
        await self._drain(stop)

    def send_one(self, now: float) -> None:
        """One row drawn at random; a random share of them gets its label later, whoever answers and how."""
        row = self.random.randrange(len(self.bodies))
        label = self.labels[row]
        request_id = f"{self.run}-{next(self.numbers)}"
        sent = self.pool.send(
            _request(self.infer_head, self.bodies[row], request_id),
            lambda status, body: self.tally.add(status, body, label),
        )
        if not sent:
            self.tally.skipped += 1
            return
        self.tally.sent += 1
        if self.random.random() * self.load.rate < self.load.label_rate:
            due = now + self.random.uniform(*self.load.label_delay)
            heapq.heappush(self.due_labels, (due, request_id, label))

    def post_due_labels(self, now: float) -> None:
        """Each label is posted once, by itself, when its time has come."""
        while self.due_labels and self.due_labels[0][0] <= now:
            _, request_id, label = heapq.heappop(self.due_labels)
            body = json.dumps({"labels": [{"id": request_id, "label": str(label), "annotator": "people"}]})
            posted = self.pool.send(_request(self.label_head, body.encode()), self._label_answered)
            self.tally.labels["posted" if posted else "left"] += 1

    def _label_answered(self, status: Status, body: bytes) -> None:
        del body
        accepted = isinstance(status, int) and 200 <= status < 300
        self.tally.labels["accepted" if accepted else "failed"] += 1

    async def _drain(self, stop: asyncio.Event) -> None:
        """After --seconds the labels that are still due are posted, too; after a signal there is no time for it."""
        while self.due_labels and not stop.is_set():
            self.post_due_labels(time.monotonic())
            await asyncio.sleep(0.01)
        self.tally.labels["left"] += len(self.due_labels)
        for _ in range(DRAIN_CHECKS):
            if not self.pool.in_flight:
                break
            await asyncio.sleep(0.01)
        self.pool.close()


async def run(load: Load, rows: Rows) -> Tally:
    """Sends until the time is over or a signal comes."""
    traffic = Traffic(load, rows)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await traffic.send_until(stop)
    return traffic.tally


def main() -> None:
    """Reads the command line, runs, prints the summary."""
    load = _load_from_arguments()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        tally = runner.run(run(load, holdout_rows()))
    print(json.dumps(tally.document()), flush=True)


def _load_from_arguments() -> Load:
    parser = argparse.ArgumentParser(description="Real digits at a steady rate, human labels a little later.")
    parser.add_argument("--url", required=True, help="of the service, as `deployctl status` shows it")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests per second")
    parser.add_argument("--label-rate", type=float, default=50.0, help="labels per second")
    parser.add_argument("--label-delay", type=_two_seconds, default=(1.0, 3.0), metavar="FROM,TO")
    parser.add_argument("--seconds", type=float, help="stop by itself after this long")
    parser.add_argument("--in-flight", type=int, default=256, help="at most; an arrival beyond it is skipped")
    parser.add_argument("--seed", type=int, help="same rows at the same times; ids differ in every run")
    parser.add_argument("--verbose", action="store_true", help="the counts so far on stderr, once a second")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two lines of --verbose")
    given = parser.parse_args()
    if given.rate <= 0 or urlsplit(given.url).scheme != "http":
        parser.error("--rate must be above 0 and --url begin with http://")
    return Load(
        url=given.url,
        model=given.model,
        rate=given.rate,
        label_rate=given.label_rate,
        label_delay=given.label_delay,
        seconds=given.seconds,
        in_flight=given.in_flight,
        seed=given.seed,
        report_every=given.every if given.verbose else None,
    )


def _two_seconds(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    return float(low), float(high or low)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional: without it the same at twice the cost
    except ImportError:
        return None
    return uvloop.new_event_loop


def _print_report(tally: Tally) -> None:
    print(json.dumps(tally.document()), file=sys.stderr, flush=True)


def _infer_body(pixels: list[float]) -> bytes:
    tensor = {"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def _head(path: str, host: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode()


def _request(head: bytes, body: bytes, request_id: str | None = None) -> bytes:
    named = f"x-request-id: {request_id}\r\n" if request_id else ""
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (head, named.encode(), len(body), body)


def _content_length(head: bytes) -> int | None:
    if head[9:12] == b"204":
        return 0
    _, found, rest = head.partition(b"\ncontent-length:")
    digits = rest.split(b"\r", 1)[0].strip()
    return int(digits) if found and digits.isdigit() else None


def _json_object(body: bytes) -> dict[str, object]:
    try:
        answer = json.loads(body) if body else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _prediction(answer: dict[str, object]) -> int | None:
    """The class with the highest probability; None for no answer (NaN arrives as null)."""
    match answer.get("outputs"):
        case [{"data": [[*row]] | [*row]}] if len(row) == 10 and None not in row:
            return row.index(max(row))
        case _:
            return None


if __name__ == "__main__":
    main()
