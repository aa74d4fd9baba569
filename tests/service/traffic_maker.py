"""Callers of a service: raw HTTP/1.1 on keep-alive connections, counted by version and status as they see it.

`Traffic` sends at a steady rate whatever the answers do; `Flood` sends as fast as the service takes it. Both run on a loop of
their own in a thread, so a test can go on with what it has to do.
"""

import asyncio
import heapq
import itertools
import json
import random
import secrets
import select
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

import uvloop

CLASSES = 3
ROWS = [[1.0 if column == row else 0.0 for column in range(4)] for row in range(CLASSES)]


def body_of(row):
    """A request for this row of four numbers."""
    return json.dumps(
        {"inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}]}
    ).encode()


BODIES = [body_of(row) for row in ROWS]
CONNECTIONS_AT_MOST = 2_000
TICK = 0.001
CATCH_UP = 0.1
"""Seconds of requests that callers who had no turn make up for: a crowd at once would be another test."""
ANSWER_WITHIN = 15.0
IDLE_AT_MOST = 10.0
"""Seconds after which a connection is not used again: the router may be closing it at this moment."""
FAILED = "failed"
"""What became of a request that got no answer: refused, reset, or silence. Stands where a status would."""


class Answer:
    """One request as its caller saw it: seconds of the monotonic clock, status or FAILED, and who answered what."""

    __slots__ = ("body", "done", "id", "row", "sent", "status", "version")

    def __init__(self, request_id, row, sent):
        self.id, self.row, self.sent = request_id, row, sent
        self.status, self.version, self.body, self.done = FAILED, None, b"", 0.0

    def __repr__(self):
        return f"<{self.status} after {self.latency:.3f} s: {self.body[:100]!r}>"

    @property
    def null(self):
        return b"null" in self.body

    @property
    def latency(self):
        return self.done - self.sent


class Callers:
    """Counts and a thread: what both kinds of load share. Use it as a context manager."""

    def __init__(self, url, model="m"):
        target = urlsplit(url)
        self.host, self.port = target.hostname, target.port
        self.model = model
        self.sent = 0
        self.statuses = Counter()
        self.versions = Counter()
        self.failures = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def answered(self):
        return self.statuses.total()

    @property
    def bad(self):
        """Everything that is not 200."""
        return self.answered - self.statuses[200]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """No new requests; those that are under way are waited for. Twice is the same as once."""
        self._over.set()
        self._thread.join(ANSWER_WITHIN + 10)
        assert not self._thread.is_alive()

    def wait_for_answers(self, count, of=None, within=30.0):
        """Until so many more answers have come (of one version, if it is named)."""
        before = self.versions[of] if of else self.answered
        deadline = time.monotonic() + within
        while (self.versions[of] if of else self.answered) < before + count:
            assert time.monotonic() < deadline, f"no {count} answers of {of or 'anybody'} within {within} s"
            time.sleep(0.01)

    def _run(self):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._send())

    async def _send(self):
        raise NotImplementedError

    def _request(self, body, request_id):
        return (
            b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: test\r\nx-request-id: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (
                self.model.encode(),
                request_id.encode(),
                len(body),
                body,
            )
        )


class Traffic(Callers):
    """`rate` requests a second, each on a connection that has nothing else to do: a kept-alive one where there is one, or with `fresh`
    a new one that is closed after its answer. `on_answer` sees each of them.

    With `bodies` one of them is sent each time, in place of one of each class. With `label_delay` this share of the requests gets the label of its row, so many seconds later (drawn from that range).
    """

    def __init__(
        self,
        url,
        rate,
        *,
        model="m",
        label_delay=None,
        label_share=1.0,
        on_answer=None,
        keep_answers=False,
        bodies=BODIES,
        fresh=False,
    ):
        super().__init__(url, model)
        self.rate = rate
        self.fresh = fresh
        self.answers = []
        self.in_flight = 0
        self._on_answer = on_answer
        self._keep = keep_answers
        self._bodies = bodies
        self.label_share = label_share
        self._label_delay = label_delay
        self._labels = []
        self._free = []
        self.open = set()
        self._numbers = itertools.count()
        self._run_id = secrets.token_hex(4)
        self._random = random.Random(7)

    def finished(self, answer):
        """One request has ended, however it did."""
        self.in_flight -= 1
        answer.done = time.monotonic()
        self.statuses[answer.status] += 1
        self.versions[answer.version] += 1
        if answer.status != 200:
            self.failures.append(answer)
        if self._keep:
            self.answers.append(answer)
        if self._on_answer:
            self._on_answer(answer)

    async def _send(self):
        due = time.monotonic()
        sweep = due
        while not self._over.is_set():
            now = time.monotonic()
            due = max(due, now - CATCH_UP)
            while due <= now:
                self._send_one(now)
                due += 1 / self.rate
            if self._label_delay:
                self._post_labels(now)
            if now >= sweep:
                self._free = [c for c in self._free if not c.lost]
                sweep = now + 1
            await asyncio.sleep(TICK)
        deadline = time.monotonic() + ANSWER_WITHIN
        while self.in_flight and time.monotonic() < deadline:  # noqa: ASYNC110 - a count, not an event
            await asyncio.sleep(0.01)
        for connection in tuple(self.open):
            connection.transport.close()
        while self.open and time.monotonic() < deadline + 1:  # noqa: ASYNC110 - as above
            await asyncio.sleep(TICK)

    def _send_one(self, now):
        row = self._random.randrange(len(self._bodies))
        answer = Answer(f"{self._run_id}-{next(self._numbers)}", row, now)
        self.sent += 1
        self.in_flight += 1
        self._on_a_connection(self._request(self._bodies[row], answer.id), answer)
        if self._label_delay and self._random.random() < self.label_share:
            heapq.heappush(
                self._labels, (now + self._random.uniform(*self._label_delay), answer.id, str(row))
            )

    def _post_labels(self, now):
        labels = []
        while self._labels and self._labels[0][0] <= now:
            _, request_id, label = heapq.heappop(self._labels)
            labels.append({"id": request_id, "label": label})
        if labels:
            body = json.dumps({"labels": labels}).encode()
            head = b"POST /v2/models/%b/labels HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
            self._on_a_connection(head % (self.model.encode(), len(body)) + body, None)

    def _on_a_connection(self, request, answer):
        while self._free:
            connection = self._free.pop()
            if connection.dropped:
                continue
            if connection.idle_since < time.monotonic() - IDLE_AT_MOST:
                connection.transport.close()
                continue
            connection.ask(request, answer)
            return
        asyncio.get_running_loop().create_task(self._open(request, answer))

    async def _open(self, request, answer):
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                _, connection = await loop.create_connection(lambda: _Connection(self), self.host, self.port)
        except OSError as error:
            if answer is not None:
                answer.body = repr(error).encode()
                self.finished(answer)
            return
        connection.ask(request, answer)

    def free(self, connection):
        if self.fresh:
            connection.transport.close()
            return
        connection.idle_since = time.monotonic()
        self._free.append(connection)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, traffic):
        self.traffic = traffic
        self.lost = False
        self.idle_since = 0.0
        self._buffer = b""
        self._asking = False
        self._answer = None

    def connection_made(self, transport):
        self.transport = transport
        self.traffic.open.add(self)
        self._news = select.poll()
        self._news.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    @property
    def dropped(self):
        """Whether the other side has ended it, the kernel asked as well: what every pool of connections looks at before it uses one."""
        return self.lost or bool(self._news.poll(0))

    def ask(self, request, answer):
        self._asking, self._answer = True, answer
        self.transport.write(request)

    def data_received(self, data):
        self._buffer = self._buffer + data if self._buffer else data
        message = _message(self._buffer)
        if message is None:
            return
        status, body, closes = message
        self._buffer = b""
        self._end(status, body)
        if closes:
            self.transport.close()
        else:
            self.traffic.free(self)

    def connection_lost(self, _error):
        self.lost = True
        self.traffic.open.discard(self)
        if self._asking:
            self._end(FAILED, b"the connection was lost")

    def _end(self, status, body):
        answer, self._answer, self._asking = self._answer, None, False
        if answer is not None:
            answer.status, answer.body, answer.version = status, body, _version(body)
            self.traffic.finished(answer)


class Flood(Callers):
    """Pipelined requests on a few connections, as many as the service takes, until it is stopped."""

    def __init__(self, url, *, connections=4, at_once=16, model="m"):
        super().__init__(url, model)
        self._connections, self._at_once = connections, at_once

    async def _send(self):
        await asyncio.gather(*(self._pipeline(number) for number in range(self._connections)))

    async def _pipeline(self, number):
        for turn in itertools.count():
            if self._over.is_set():
                return
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError as error:
                self._lost(1, error)
                continue
            waiting = [0]
            try:
                await self._ask(reader, writer, f"{number}-{turn}-{secrets.token_hex(4)}", waiting)
            except (OSError, asyncio.IncompleteReadError) as error:
                self._lost(waiting[0], error)
            finally:
                writer.close()

    async def _ask(self, reader, writer, name, waiting):
        """Some requests at once, then all of their answers, again and again; `waiting[0]` counts what is still to come."""
        buffer = b""
        for number in itertools.count():
            if self._over.is_set():
                return
            requests = [
                self._request(BODIES[each % CLASSES], f"{name}-{number}-{each}")
                for each in range(self._at_once)
            ]
            waiting[0] = len(requests)
            self.sent += len(requests)
            writer.write(b"".join(requests))
            while waiting[0]:
                data = await reader.read(1 << 18)
                if not data:
                    raise asyncio.IncompleteReadError(buffer, None)
                buffer = self._count(buffer + data, waiting)

    def _count(self, buffer, waiting):
        while (length := _length(buffer)) is not None:
            status, body, _ = _message(buffer[:length])
            self.statuses[status] += 1
            self.versions[_version(body)] += 1
            if status != 200:
                self.failures.append((status, body))
            waiting[0] -= 1
            buffer = buffer[length:]
        return buffer

    def _lost(self, count, error):
        self.statuses[FAILED] += count
        self.failures.append((FAILED, repr(error)))


def _length(buffer):
    """Bytes of the first answer in here, None while it is not whole."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = buffer[:head_end].lower()
    _, found, rest = head.partition(b"content-length:")
    whole = head_end + 4 + (int(rest.split(b"\r", 1)[0]) if found else 0)
    return whole if len(buffer) >= whole else None


def _message(buffer):
    """(status, body, whether the connection ends) of the first answer, None while it is not whole."""
    length = _length(buffer)
    if length is None:
        return None
    head, _, body = buffer[:length].partition(b"\r\n\r\n")
    return int(head[9:12]), body, b"connection: close" in head.lower()


def _version(body):
    _, found, rest = body.partition(b'"model_version":"')
    return rest.partition(b'"')[0].decode() if found else None
