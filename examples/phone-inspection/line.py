"""The factory's line: sends phones to a running service at a steady rate and, later, what the inspectors say of them.

Nobody waits for an answer: phones come when they come (a Poisson process), and the light may dim on the way.

    python examples/phone-inspection/line.py --url http://127.0.0.1:8080 --rate 50 --seconds 60 --light-dims-at 30

A line on stderr every few seconds, one JSON document on stdout at the end, after --seconds, SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from inspectors import Opinion, opinions
from phones import DIM, NORMAL, SIDE, draw

LOT = 16  # phones are drawn so many at a time: some milliseconds, so that arrivals stay on time
FADING = 3.0  # seconds from normal light to dim
ANSWER_WITHIN = 10.0
IN_FLIGHT = 64
TICK = 0.005
NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class Shift:
    """What happens on the line. Rate per second, times in seconds; `hurry` divides how late the labels are."""

    rate: float = 50.0
    seconds: float | None = None
    light_dims_at: float | None = None
    hurry: float = 1.0
    seed: int = 0
    scratched: float = 0.5

    def light_at(self, seconds: float) -> float:
        """The light so long after the start, from NORMAL to DIM."""
        if self.light_dims_at is None:
            return NORMAL
        return float(np.interp(seconds - self.light_dims_at, (0.0, FADING), (NORMAL, DIM)))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One phone: when it comes, the bytes of its tensor, what is true of it, and what will be said of it when."""

    at: float
    image: bytes
    light: float
    scratched: bool
    opinions: tuple[Opinion, ...]


@dataclass(slots=True)
class Tally:
    """Counts. sent = sum of by_status, once nothing is in flight; `right` and `wrong` are by version and light."""

    sent: int = 0
    skipped: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, arrival: Arrival, answer: dict[str, Any]) -> None:
        """An answer of 200. Where people decide there is no output, and nothing that could be right or wrong."""
        said = prediction_in(answer)
        version = "people" if said is None else str(answer.get("model_version"))
        light = "normal" if arrival.light > (NORMAL + DIM) / 2 else "dim"
        verdict = "left to people" if said is None else "right" if said == arrival.scratched else "wrong"
        self.answers.setdefault(version, Counter())[f"{verdict}, {light} light"] += 1

    def document(self) -> dict[str, object]:
        """The totals as they are printed; `wall` is seconds since 1970, so that it can be laid beside a journal."""
        return {
            "schema_version": 1,
            "wall": round(time.time(), 3),
            "sent": self.sent,
            "skipped": self.skipped,
            "by_status": dict(sorted(self.by_status.items())),
            "answers": {
                version: dict(sorted(seen.items())) for version, seen in sorted(self.answers.items())
            },
            "labels": {name: self.labels[name] for name in ("accepted", "failed", "corrections", "left")},
        }

    def line(self, seconds: float, light: float) -> str:
        """The counts so far, for a person."""
        parts = []
        for version, seen in sorted(self.answers.items()):
            right, wrong = (
                seen[f"{word}, normal light"] + seen[f"{word}, dim light"] for word in ("right", "wrong")
            )
            judged = right + wrong
            name = "people decide" if version == "people" else f"version {version}"
            parts.append(f"{name}: {right}/{judged} right" if judged else f"{name}: {seen.total()}")
        failed = self.by_status.total() - self.by_status["200"]
        return (
            f"{seconds:6.1f} s  light {light:4.0%}  {self.sent} phones, {failed} failed, "
            f"{self.labels['accepted']} labels  {'; '.join(parts)}"
        )


def stream(shift: Shift) -> Iterator[Arrival]:
    """Every phone of a shift in the order of arrival, endless without `seconds`; the same for the same shift."""
    clock, at = np.random.default_rng((shift.seed, 0)), 0.0
    for lot in itertools.count():
        times = at + np.cumsum(clock.exponential(1 / shift.rate, LOT))
        at = float(times[-1])
        lights = np.array([shift.light_at(each) for each in times])
        phones = draw((shift.seed, 1, lot), LOT, lights, shift.scratched)
        said: list[list[Opinion]] = [[] for _ in range(LOT)]
        for opinion in opinions((shift.seed, 2, lot), phones, shift.hurry):
            said[opinion.phone].append(opinion)
        for number in range(LOT):
            if shift.seconds is not None and times[number] > shift.seconds:
                return
            yield Arrival(
                at=float(times[number]),
                image=phones.pictures[number].astype("<f4").tobytes(),
                light=float(lights[number]),
                scratched=bool(phones.scratched[number]),
                opinions=tuple(said[number]),
            )


def infer_request(image: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of one picture: the binary tensor extension of the Open Inference Protocol V2."""
    tensor = {
        "name": "image",
        "shape": [1, 1, SIDE, SIDE],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(image)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return {"Inference-Header-Content-Length": str(len(head))}, head + image


def prediction_in(answer: dict[str, Any]) -> bool | None:
    """Whether the model calls the phone scratched; None where people decide and no model's answer is given out."""
    for output in answer.get("outputs") or []:
        if output.get("name") == "probabilities":
            fine, scratched = output["data"]
            return bool(scratched > fine)
    return None


class Line:
    """One shift against one service; `run` returns what came of it."""

    def __init__(self, client: httpx.AsyncClient, model: str, shift: Shift) -> None:
        self.shift = shift
        self.tally = Tally()
        self._client = client
        self._path = f"/v2/models/{model}"
        self._run = secrets.token_hex(4)  # ids differ between runs, whatever the seed: a label joins by id
        self._due: list[tuple[float, int, str, Opinion]] = []
        self._order = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event, report_every: float | None = None) -> Tally:
        """Until the shift is over or `stop` is set; labels that are then still due are posted only after a whole shift."""
        began = time.monotonic()
        next_report = report_every or float("inf")
        for number, arrival in enumerate(stream(self.shift)):
            while (now := time.monotonic() - began) < arrival.at and not stop.is_set():
                self._post_due(now)
                await asyncio.sleep(min(arrival.at - now, TICK))
            if stop.is_set():
                break
            self._post_due(now)
            await asyncio.sleep(0)  # a line that is late reads its answers all the same
            self._send(f"{self._run}-{number}", arrival)
            if now >= next_report and report_every:
                print(self.tally.line(now, arrival.light), file=sys.stderr, flush=True)
                next_report += report_every
        while self._due and not stop.is_set():
            self._post_due(time.monotonic() - began)
            await asyncio.sleep(TICK)
        self.tally.labels["left"] = len(self._due)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ANSWER_WITHIN)
        return self.tally

    def _send(self, request_id: str, arrival: Arrival) -> None:
        if len(self._tasks) >= IN_FLIGHT:
            self.tally.skipped += 1
            return
        self.tally.sent += 1
        self._begin(self._infer(request_id, arrival))
        for opinion in arrival.opinions:
            heapq.heappush(self._due, (arrival.at + opinion.late, next(self._order), request_id, opinion))

    def _post_due(self, now: float) -> None:
        due: list[dict[str, str]] = []
        corrections = 0
        while self._due and self._due[0][0] <= now:
            _, _, request_id, opinion = heapq.heappop(self._due)
            due.append({"id": request_id, "label": opinion.label, "annotator": opinion.annotator})
            corrections += opinion.corrects
        if due:
            self._begin(self._label(due, corrections))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _infer(self, request_id: str, arrival: Arrival) -> None:
        headers, body = infer_request(arrival.image)
        headers["x-request-id"] = request_id
        try:
            answer = await self._client.post(f"{self._path}/infer", headers=headers, content=body)
        except httpx.TransportError:
            self.tally.by_status[NO_ANSWER] += 1
            return
        self.tally.by_status[str(answer.status_code)] += 1
        if answer.status_code == httpx.codes.OK:
            self.tally.add(arrival, answer.json())

    async def _label(self, labels: list[dict[str, str]], corrections: int) -> None:
        try:
            answer = await self._client.post(f"{self._path}/labels", json={"labels": labels})
            accepted = answer.is_success
        except httpx.TransportError:
            accepted = False
        self.tally.labels["accepted" if accepted else "failed"] += len(labels)
        self.tally.labels["corrections"] += corrections if accepted else 0


async def run(url: str, model: str, shift: Shift, report_every: float | None = None) -> Tally:
    """One shift against the service at `url`, ended early by SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    limits = httpx.Limits(max_connections=IN_FLIGHT, keepalive_expiry=2.0)
    async with httpx.AsyncClient(
        base_url=url, timeout=ANSWER_WITHIN, limits=limits, trust_env=False
    ) as client:
        return await Line(client, model, shift).run(stop, report_every)


def main() -> None:
    """Reads the command line, runs the shift, prints the totals."""
    parser = argparse.ArgumentParser(
        description="Phones at a steady rate, inspectors' labels some seconds later."
    )
    parser.add_argument("--url", required=True, help="of the service, as `deployctl status` shows it")
    parser.add_argument("--model", default="phones")
    parser.add_argument("--rate", type=float, default=50.0, help="phones per second")
    parser.add_argument("--seconds", type=float, help="stop by itself after this long")
    parser.add_argument(
        "--light-dims-at", type=float, metavar="SECONDS", help="the factory's light dims then"
    )
    parser.add_argument(
        "--hurry", type=float, default=1.0, help="labels come 1 to 20 s late, divided by this"
    )
    parser.add_argument("--scratched", type=float, default=0.5, help="share of the phones")
    parser.add_argument(
        "--seed", type=int, default=0, help="same phones and opinions; ids differ in every run"
    )
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two lines on stderr")
    given = parser.parse_args()
    if given.rate <= 0 or given.hurry <= 0 or urlsplit(given.url).scheme != "http":
        parser.error("--rate and --hurry must be above 0 and --url begin with http://")
    shift = Shift(given.rate, given.seconds, given.light_dims_at, given.hurry, given.seed, given.scratched)
    print(json.dumps(asyncio.run(run(given.url, given.model, shift, given.every)).document()), flush=True)


if __name__ == "__main__":
    main()
