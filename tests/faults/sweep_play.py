"""One run of a chapter: what its clients asked for, and what they were promised. The checker holds the service to it."""

import json
import socket
import time
from dataclasses import dataclass, field

import msgspec
from sweep_lane import PATIENCE, HangError
from sweep_stories import KEY, NAME

from deployctl import journal
from deployctl.controller.labels import MEMORY
from deployctl.core.plan import Version
from deployctl.core.rollout import Event
from deployctl.core.service import serve, with_event

DOCUMENTED = range(2, 10)
"""Exit codes that an error may carry; 1 is a bug."""


class WrongError(Exception):
    """Something that must never be, in one line."""


@dataclass(frozen=True)
class Promise:
    """A client was told that this is done."""

    by: str
    what: str
    answer: dict


@dataclass(frozen=True)
class Refusal:
    """A client was told that this is not done."""

    by: str
    what: str
    exit_code: int
    words: str


@dataclass
class Play:
    """The clients of one chapter."""

    lane: object
    fault_came: object
    fault_over: object
    story: str
    from_folder: tuple = ()
    promises: list = field(default_factory=list)
    refusals: list = field(default_factory=list)
    asked: dict = field(default_factory=dict)
    labelled: list = field(default_factory=list)
    traffic_flows: bool = False
    _people: int = 0

    # ── verbs ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, manifest):
        path = self.lane.manifest.with_name(f"{manifest}.yaml")
        return self._do("/v1/rollouts", manifest=path.read_text(), path=str(path))

    def promote(self, **more):
        return self._do("/v1/promote", **more)

    def roll_back(self, **more):
        return self._do("/v1/rollback", **more)

    def pause(self):
        return self._do("/v1/pause")

    def resume(self):
        return self._do("/v1/resume")

    def label(self, ids):
        rows = [{"id": one, "label": "7"} for one in ids]
        answer = self._do("/v1/labels", labels=rows)
        self.labelled += ids
        return answer

    def _do(self, path, /, **body):
        """Ask until it is done: once, and once more where a fault was in the way of the first."""
        for last in (False, True):
            self._people += 1
            by, over_before = f"person:{self._people} of {self.story}", self.fault_over()
            reply = self.lane.call("POST", path, {**body, "by": by})
            if reply.good:
                done = reply.body.get("changed", True)
                if not done and not last and self.fold().running is not None:  # it may have ended by itself
                    raise WrongError(f"{path} by {by} changed nothing: {reply.body}")
                self.promises.append(Promise(by, path, reply.body))
                return reply.body
            refusal = Refusal(by, path, reply.body["exit_code"], reply.body["error"])
            self.refusals.append(refusal)
            if refusal.exit_code not in DOCUMENTED or "\n" in refusal.words:
                raise WrongError(f"{path} was refused in no good words: {refusal}")
            if over_before or last or not self.fault_came():
                raise WrongError(f"{path} was refused without a fault: {refusal}")
            self._wait_for_room()
        return None

    def _wait_for_room(self):
        if self.lane.board.came:
            self.lane.wait(lambda: self.lane.board.lifted, "room on the disk")

    # ── looking ────────────────────────────────────────────────────────────────────────────────────────────────

    def wait_for_hold(self, step):
        """Until a person is waited for at this step; a busy machine may be late, and hold it at the one before as well."""
        while True:
            rollout = self.lane.wait(lambda: (now := self.fold().rollout) and now.waits_for and now, "a hold")
            if rollout.step >= step:
                return
            self.promote()

    def wait_for_phase(self, phase):
        """Until the last rollout is in this phase."""
        self.lane.wait(lambda: (now := self.fold().rollout) and now.phase.value == phase, phase)

    def wait_for_label_files(self):
        """Until it is remembered how far the files of the watched folder were read."""
        self.lane.wait((self.lane.home.path / MEMORY).exists, "the reading of label files")

    def written(self):
        return journal.read(self.lane.home.journal)

    def fold(self):
        return fold(self.written())

    def ask(self, count):
        """So many requests through the router; gives their ids. Each must be answered as one of the splits in force says."""
        before = self.fold()
        keys = [f"{self.story} {len(self.asked) + n}" for n in range(count)]
        answers = ask(self.lane.address, keys)
        self.traffic_flows = True
        rollout = before.rollout
        counts = rollout is not None and rollout.learned is not None and rollout.watched
        for key in keys:
            self.asked[key] = rollout.id if counts else None
        if failed := {key: answer for key, answer in answers.items() if answer[0] != 200}:
            raise WrongError(f"callers were not answered: {failed}")
        return keys


def ask(address, keys, within=PATIENCE):
    """Status and version for each key, asked for on one connection, pipelined."""
    deadline = time.monotonic() + within
    with socket.create_connection(address, timeout=within) as connection:
        body = b"{}"
        for key in keys:
            head = (
                f"POST /v2/models/{NAME}/infer HTTP/1.1\r\nHost: d\r\n{KEY}: {key}\r\nx-request-id: {key}\r\n"
            )
            connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        answers, file = {}, connection.makefile("rb")
        for key in keys:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                answers[key] = _answer(file)
            except TimeoutError as error:
                raise HangError(f"no answer to a caller within {within:g} s") from error
        return answers


def _answer(file):
    line = file.readline()
    if not line:
        raise WrongError("the router hung up on a caller")
    status, length = int(line.split()[1]), 0
    while (header := file.readline().strip()) != b"":
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    body = json.loads(file.read(length))
    return status, body.get("model_version") or body


def fold(written):
    """The service that these records of a journal add up to. Raises IllegalEventError for what cannot have happened."""
    service = None
    for record in written:
        if record["type"] == "served":
            service = service or serve(msgspec.convert(record["version"], Version), record["seq"])
        else:
            known = {**record["event"], "seq": record["seq"], "wall": record["wall"]}
            service = with_event(service, record["rollout"], msgspec.convert(known, Event))
    return service
