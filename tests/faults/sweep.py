"""The kill sweep: every chapter is rehearsed once, then played again with one fault before each call that changes something.

As a script (`python tests/faults/sweep.py --help`) it plays some of the points and prints what is wrong.
"""

import argparse
import json
import os
import queue
import random
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from sweep_faults import DEADLY, Fault
from sweep_stories import CHAPTERS, write_manifests

LANES = max(2, 3 * len(os.sched_getaffinity(0)) // 2)
"""A point waits for a timer now and then, so there are more of them than processors."""

LANE_PATIENCE = 600.0
"""Seconds until a lane that says nothing is taken for dead. A point has a bound of its own; this is for a machine that gives us no time."""


@dataclass(frozen=True)
class Point:
    """Where which faults come. Even and odd ones go on differently after it: rolled back at once, or promoted first."""

    chapter: str
    faults: tuple[Fault, ...]
    takes_over: bool = False
    parity: int = 0

    def __str__(self):
        role = "the controller after a killed one" if self.takes_over else "the first controller"
        return f"{self.chapter}, {role}: {', then '.join(map(str, self.faults))}"


class Sweep:
    """Lanes, and the folder that they work in; a tmpfs where there is one, for thousands of points want no disk."""

    def __init__(self, lanes=LANES, *, strace=True):
        self._strace = strace
        self._folder = tempfile.TemporaryDirectory(prefix="dctl", dir=_quick_folder())
        root = Path(self._folder.name)
        shared = root / "shared"
        (shared / "after").mkdir(parents=True)
        write_manifests(shared)
        self._lanes = [_Lane(root / str(number), shared) for number in range(lanes)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for lane in self._lanes:
            lane.close()
        self._folder.cleanup()

    def rehearse(self, chapters=CHAPTERS, *, both=True):
        """The points of these chapters, in order: as the first controller of a service and, with `both`, as a successor."""
        points = []
        for chapter in chapters:
            for takes_over in (False, True) if both else (False,):
                task = {
                    "chapter": chapter.name,
                    "takes_over": takes_over,
                    "rehearse": True,
                    "strace": self._strace,
                }
                found = [Fault(**fault) for fault in self._lanes[0].ask(task)]
                points += [
                    Point(chapter.name, (fault,), takes_over, at % 2) for at, fault in enumerate(found)
                ]
        return points

    def run(self, points, twin=None, until=None):
        """What became of each point, as they end; with `until` only as many as it takes to find one that is wrong."""
        waiting, results = queue.SimpleQueue(), queue.SimpleQueue()
        over = threading.Event()
        for point in points:
            waiting.put(point)
        threads = [
            threading.Thread(target=lane.work, args=(waiting, results, twin, over), daemon=True)
            for lane in self._lanes
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in points:
                got = results.get(timeout=2 * LANE_PATIENCE)
                yield got
                if until is not None and until(got[1]):
                    break
        finally:
            over.set()
            for thread in threads:
                thread.join()


class _Lane:
    """A lane's process, from outside."""

    def __init__(self, root, shared):
        self._root, self._shared = root, shared
        self._start()

    def _start(self):
        self._said = (self._root.parent / f"{self._root.name}.log").open("ab")
        argv = [
            sys.executable,
            str(Path(__file__).with_name("sweep_runner.py")),
            str(self._root),
            str(self._shared),
        ]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, start_new_session=True
        )

    def ask(self, task):
        """The answer to a task. Raises RuntimeError with the lane's last words when it has none."""
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], LANE_PATIENCE)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            said = Path(self._said.name).read_text(errors="replace")[-2000:]
            raise RuntimeError(f"a lane gave no answer to {task}: {said}")
        return json.loads(line)

    def work(self, waiting, results, twin, over):
        """Points from the queue, until there are none."""
        while not over.is_set():
            try:
                point = waiting.get_nowait()
            except queue.Empty:
                return
            faults = [asdict(fault) for fault in point.faults]
            task = {
                "rehearse": False,
                "chapter": point.chapter,
                "faults": faults,
                "takes_over": point.takes_over,
            }
            try:
                result = self.ask({**task, "parity": point.parity, "twin": twin})
            except RuntimeError as error:
                result = {"end": "hung", "words": str(error), "seen": []}
                self.close()
                self._start()
            results.put((point, result))

    def close(self):
        """Its children die with it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            stream.close()


def doubled(points, count, seed=1):
    """So many pairs: a kill, and another fault in the recovery from it."""
    drawn = random.Random(seed)
    first = [point for point in points if point.faults[0].mode in DEADLY]
    second = [point.faults[0] for point in points if point.takes_over and point.chapter == "up"]
    pairs = []
    for at in range(count):
        point, fault = drawn.choice(first), drawn.choice(second)
        pairs.append(Point(point.chapter, (*point.faults, fault), point.takes_over, at % 2))
    return pairs


def spread(points, count, seed=1):
    """So many of them, evenly spread over all, and in an order in which any beginning of it is, too."""
    chosen = [points[at * len(points) // count] for at in range(count)] if len(points) > count else [*points]
    random.Random(seed).shuffle(chosen)
    return chosen


def _quick_folder():
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 64 << 20:
        return memory
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--double", type=int, default=0)
    parser.add_argument("--chapter", action="append")
    parser.add_argument("--by", choices=("strace", "failpoint"))
    parser.add_argument("--mode", default=None)
    parser.add_argument("--twin")
    parser.add_argument("--lanes", type=int, default=LANES)
    given = parser.parse_args()
    ends, began = Counter(), time.monotonic()

    def say(line):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    with Sweep(given.lanes, strace=given.by != "failpoint") as sweep:
        points = sweep.rehearse()
        say(f"{len(points)} points after {time.monotonic() - began:.1f} s")
        if given.double:
            points = doubled(points, given.double)
        chosen = [
            point
            for point in points
            if (not given.chapter or point.chapter in given.chapter)
            and (not given.by or point.faults[0].by == given.by)
            and (not given.mode or point.faults[0].mode == given.mode)
        ][:: given.every]
        for point, result in sweep.run(chosen, given.twin):
            ends[result["end"], *result["seen"]] += 1
            if result["end"] in {"violated", "hung"}:
                say(f"{point}: {result['end']}: {result['words'][:600]}")
    seconds = time.monotonic() - began
    say(f"{sum(ends.values())} in {seconds:.0f} s: {dict(ends)}")


if __name__ == "__main__":
    main()
