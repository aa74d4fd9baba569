"""Requests that no client would send, by the thousand: a router and a real worker answer each in order, or end its connection, and live on.

Seeds are well-formed requests; a mutation is drawn from a number, so a case is repeated by its number alone. `--long` tries two millions.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import uvloop
from real_worker import RealWorker

SHORT_SECONDS, LONG_CASES = 10.0, 2_000_000
AT_ONCE = 48
ANSWER_SECONDS = 8.0
"""Far more than any of these needs, and less than the router's patience: whoever waits so long waits for a time-out."""

ALLOWED = {200, 400, 404, 405, 408, 413, 414, 415, 417, 422, 431, 501, 503, 505}
"""500 would be a request that broke something; 501 is a transfer coding, 505 a version of HTTP."""

INFER = b"/v2/models/m/infer"
ROWS = np.arange(6, dtype="<f4").reshape(2, 3)


def post(body, *headers, path=INFER):
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body):
    cut = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:], b""))
    return b"POST " + INFER + b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def tensor(**more):
    return {"name": "x", "shape": [2, 3], "datatype": "FP32", **more}


NESTED = json.dumps({"id": "i", "inputs": [tensor(data=ROWS.tolist())]}).encode()
FLAT = json.dumps({"inputs": [tensor(data=ROWS.ravel().tolist())], "outputs": [{"name": "y"}]}).encode()
BINARY_HEAD = json.dumps({"inputs": [tensor(parameters={"binary_data_size": ROWS.nbytes})]}).encode()
LENGTH_OF_HEAD = b"Inference-Header-Content-Length: %d" % len(BINARY_HEAD)
LABELS = json.dumps({"labels": [{"id": "i", "label": "7", "annotator": "ann", "shown": False}]}).encode()

BODIES = [NESTED, FLAT]
SEEDS = [
    post(NESTED),
    post(FLAT, b"X-Request-Id: 7", b"Connection: close"),
    post(BINARY_HEAD + ROWS.tobytes(), LENGTH_OF_HEAD),
    post(NESTED, b"Expect: 100-continue"),
    post(LABELS, path=b"/v2/models/m/labels"),
    chunked(FLAT),
    post(NESTED) + b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n" + chunked(NESTED),
    b"GET /v2/models/m/versions/1 HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
]
BYTES = b"\0\t\n\r \"',-.0159:;<=?AEZ[]az{}\x7f\x80\xff"
WORDS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\r\n ", b"0\r\n\r\n", b"ffffffffffffffff\r\n"),
    *(b"Content-Length: 0\r\n", b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 67108865\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Host: b\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"%00", b"../", b"x" * 5000, b"X: y\r\n" * 60),
    *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: deflate\r\n", b"Accept-Encoding: gzip\r\n"),
    *(b"Inference-Header-Content-Length: 0\r\n", b"Inference-Header-Content-Length: 5\r\n"),
    *(b"NaN", b"Infinity", b"-1", b"1e400", b"1.5", b"null", b"true", b"2147483648", b"18446744073709551616"),
    *(
        b'"\\ud800"',
        b"[" * 300,
        b'{"a":' * 300,
        b"9" * 400,
        b'"shape":[0]',
        b'"datatype":"BYTES"',
        b'"data":[]',
    ),
]


def mutated(case):
    """What is sent, in pieces: one draw for each number."""
    draw = random.Random(case)
    kind = draw.random()
    if kind < 0.4:  # sound HTTP around a body that is none
        data = post(bent(draw.choice(BODIES), draw))
    elif kind < 0.5:  # and binary tensors whose description is none
        head = bent(BINARY_HEAD, draw)
        length = len(head) if draw.random() < 0.8 else draw.randrange(2 * len(head) + 1)
        data = post(head + ROWS.tobytes(), b"Inference-Header-Content-Length: %d" % length)
    else:
        data = bent(draw.choice(SEEDS), draw)
        if draw.random() < 0.2:
            data += draw.choice(SEEDS)
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.choice([0, 0, 0, 1, 3])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def bent(data, draw):
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice([1, 1, 2, 4, 16, 64]))
        match draw.randrange(7):
            case 0:
                new = bytes([draw.choice(BYTES)])
            case 1:
                new = bytes(byte ^ 1 << draw.randrange(8) for byte in data[start:end])
            case 2:
                new = b""
            case 3:
                new = data[start:end] * draw.choice([2, 2, 3, 50])
            case 4:
                new = data[start:end] + draw.choice(WORDS)
            case 5:
                new = draw.choice(WORDS)
            case _:
                new, end = b"", len(data)  # it ends here
        data = data[:start] + new + data[end:]
    return data


# ── what comes back ────────────────────────────────────────────────────────────────────────────────────────────────

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]+\r\n((?:[a-z0-9-]+: [^\r\n]*\r\n)*)\r\n")
_LENGTH = re.compile(rb"(?:^|\n)content-length: (\d+)\r\n")


def statuses(answered):
    """The statuses of a row of whole, well-formed answers; an AssertionError for anything else."""
    found = []
    at = 0
    while at < len(answered):
        head = _HEAD.match(answered, at)
        assert head, answered[at : at + 200]
        status, at = int(head[1]), head.end()
        if status == 100:
            continue
        length = _LENGTH.search(head[2])
        assert length, head[0]
        end = at + int(length[1])
        assert end <= len(answered), "an answer that is cut"
        if status != 200:
            assert "error" in json.loads(answered[at:end]), answered[at:end][:200]
        found.append(status)
        at = end
    return found


async def tried(address, case, counts):
    """Send one, half-close, and read what is said until the end."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        for piece in mutated(case):
            writer.write(piece)
            await asyncio.sleep(0)
        writer.write_eof()
        async with asyncio.timeout(ANSWER_SECONDS):
            answered = await reader.read()
    except ConnectionError:
        counts["ended at once"] += 1  # it was refused before all of it had come
        return
    finally:
        writer.close()
    said = statuses(answered)
    assert ALLOWED.issuperset(said), said
    counts.update(said or ["no answer"])


async def fuzz(address, first, seconds, cases):
    """One case after the other on so many connections at once, until the time or the number is over."""
    counts, numbers, wrong = Counter(), iter(range(first, first + cases)), []
    until = time.monotonic() + seconds

    async def work():
        for case in numbers:
            try:
                await tried(address, case, counts)
            except (AssertionError, TimeoutError) as error:
                wrong.append(
                    f"case {case}: {type(error).__name__} {error}; sent {b''.join(mutated(case))[:400]}"
                )
            counts["tried"] += 1
            if time.monotonic() > until or len(wrong) > 10:
                return

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return counts, wrong


def held(pid):
    """(memory of its own in KiB, open files) of a process."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Anonymous:")[2].split()[0]), sum(
        1 for _ in Path(f"/proc/{pid}/fd").iterdir()
    )


@pytest.mark.timeout(7200)
def test_whatever_is_sent_is_answered_in_order_or_ended_and_costs_nothing_for_good(make_street, request):
    long = request.config.getoption("--long")
    street = make_street(worker=RealWorker)
    processes = [street.router, *(worker.process for worker in street.workers)]

    def some(first, seconds, cases):
        counts, wrong = uvloop.run(fuzz(street.address, first, seconds, cases))
        assert not wrong, "\n".join(wrong)
        assert all(process.poll() is None for process in processes)
        assert street.infer(NESTED).status == 200
        return counts

    warm = some(0, SHORT_SECONDS / 2, LONG_CASES)
    before = [held(process.pid) for process in processes]
    counts = some(warm["tried"], 7000.0 if long else SHORT_SECONDS / 2, LONG_CASES)
    after = [held(process.pid) for process in processes]
    for (kib, files), (kib_after, files_after) in zip(before, after, strict=True):
        assert kib_after - kib < 32 * 1024, (before, after)
        assert files_after <= files + 2, (before, after)
    assert {200, 400} <= counts.keys(), counts
    if long:
        assert counts["tried"] == LONG_CASES, counts
