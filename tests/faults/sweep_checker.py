"""What has to be true after a fault, whatever it was and wherever it came (docs/decisions/0007-faults.md)."""

import time
from collections import Counter
from dataclasses import replace

from sweep_play import WrongError, ask, fold

from deployctl import records
from deployctl.controller.labels import MEMORY
from deployctl.core.assignment import goes_to_candidate, key_hash
from deployctl.core.rollout import HALF_AN_ORDER
from deployctl.records import Began, Intake
from deployctl.store import Store

KEYS = [f"probe-{n}" for n in range(24)]
SETTLE = 10.0
"""Seconds until traffic has to follow the journal, and batches are where they belong."""


def check_router_alone(play):
    """(0) While no controller is there the router does what was written down once, and nothing older than what was promised."""
    if play.traffic_flows:
        allowed = _allowed(play)
        answers = _answers(play)
        if not any(answers == _expected(split) for split in allowed):
            raise WrongError(f"the router does what was never written down: {Counter(answers.values())}")


def check_controller(play, *, exact):
    """(1) to (4) for the controller that runs now. `exact`: no write failed, so that nothing may be missing in the records."""
    lane = play.lane
    before = play.fold()  # what time alone decides may come between this and the fold below
    status = lane.call("GET", "/v1/status").body
    _follows(play)
    written = play.written()
    service = fold(written)
    _promises_are_kept(play, written)
    store = Store(lane.home.models)
    for version in service.known.values():
        if not store.holds(version.digest):
            raise WrongError(f"version {version.version} is in the journal and not in the store")
    if status["live"] not in {before.live.version, service.live.version}:
        raise WrongError(f"live is {status['live']}, in the journal it is {service.live.version}")
    _outcomes_are_there(play, service, exact=exact)
    _labels_are_there(play, service)


def check_outcomes_count_again(play):
    """(5) A controller that lived through an error counts what comes after it."""
    rollout = play.fold().rollout
    if rollout is None or rollout.learned is None or not rollout.watched:
        return
    wanted = {key_hash(key) for key in play.ask(6)}
    deadline = time.monotonic() + SETTLE
    while (missing := wanted - _recorded(play, rollout.id).keys()) or not _began(play, rollout):
        now = play.fold().rollout
        if (now.id, now.step) != (rollout.id, rollout.step) or not now.watched:
            return
        if time.monotonic() > deadline:
            raise WrongError(
                f"{len(missing)} of {len(wanted)} requests after the error are in no record, or of no step"
            )
        time.sleep(0.01)


def check_it_goes_on(play, *, promote):
    """(3) A person can go on with it, and a rollback ends at weight 0."""
    service = play.fold()
    if service.running is not None and not service.running.paused:
        play.pause()
        play.resume()
    if service.running is not None and promote and not service.running.plan.others:
        play.promote(full=True, reason="to see that it goes on")
    answer = play.lane.call("POST", "/v1/rollback", {"by": "person:last", "reason": "the end"})
    if not answer.good or answer.body.get("weight") != 0:
        raise WrongError(f"the last rollback ended with {answer.body}")
    service = play.fold()
    if service.split.weight != 0:
        raise WrongError("weight 0 was promised, and the journal says something else")
    _follows(play)


def check_clean_start(play):
    """A start that failed said so with a documented code."""
    code, words = play.lane.exits[-1]
    if code not in range(2, 10) or "\n" in words:
        raise WrongError(f"the service ended with {code}: {words}")


def _follows(play):
    """(1) Callers are answered as the fold of the journal says, within a bounded time; and the status says the same."""
    deadline = time.monotonic() + SETTLE
    while True:
        split = play.fold().split
        answers = _answers(play)
        status = play.lane.call("GET", "/v1/status").body
        same = (status["weight"], status["mirror"]) == (split.weight, split.mirror)
        if answers == _expected(split) and same and play.fold().split == split:
            return
        if time.monotonic() > deadline:
            seen = Counter(answers.values())
            raise WrongError(
                f"the journal says weight {split.weight:g} ({split}), the router does {seen}, {status['weight']}"
            )
        time.sleep(0.01)


def _answers(play):
    answers = ask(play.lane.address, KEYS)
    if failed := {answer for answer in answers.values() if answer[0] != 200}:
        raise WrongError(f"callers were not answered: {failed}")
    return {key: version for key, (_, version) in answers.items()}


def _expected(split):
    return {key: _version_for(split, key) for key in KEYS}


def _version_for(split, key):
    taken = (
        split.candidate is not None and split.weight > 0 and goes_to_candidate(split.salt, key, split.weight)
    )
    return (split.candidate if taken else split.baseline).version


def _allowed(play):
    """The splits of the journal from the last promise on. A service that starts in mid-rollout serves at 0 at first."""
    written = play.written()
    promised = {promise.by for promise in play.promises}
    known = [at for at, record in enumerate(written) if _by(record) in promised]
    splits = [fold(written[: at + 1]).split for at in range(known[-1] if known else 0, len(written))]
    return splits if known else [*splits, *(replace(split, weight=0.0) for split in splits)]


def _by(record):
    return record["event"]["by"] if record["type"] == "event" else None


def _promises_are_kept(play, written):
    """(2) Promised: in the journal. Refused: not in it."""
    seen = {_by(record) for record in written}
    for promise in play.promises:
        if promise.what == "/v1/labels":
            continue
        if promise.answer.get("changed", promise.answer.get("state") == "started") and promise.by not in seen:
            raise WrongError(f"{promise.what} was promised to {promise.by} and is not in the journal")
    undone = _half_orders(play)
    for refusal in play.refusals:
        if refusal.by in seen and refusal.exit_code != 4 and refusal.by not in undone:
            raise WrongError(
                f"{refusal.what} was refused to {refusal.by} and is in the journal: {refusal.words}"
            )


def _half_orders(play):
    """Who gave an order of two records of which one was written down: the service has said in the journal that it changed nothing."""
    rollouts = {
        r.id for r in play.fold().rollouts if r.ended_by is not None and r.ended_by.reason == HALF_AN_ORDER
    }
    starts = [record for record in play.written() if record.get("rollout") in rollouts]
    return {record["event"]["by"] for record in starts if record["event"]["kind"] == "started"}


def _outcomes_are_there(play, service, *, exact):
    """(2) Every request that was answered counts once; not more than once in any case."""
    rollout = service.rollout
    if rollout is None or not play.asked:
        return
    wanted = {key_hash(key) for key, asked_in in play.asked.items() if asked_in == rollout.id}
    complete = exact and rollout.learned is not None and rollout.watched
    deadline = time.monotonic() + SETTLE
    while True:
        found = _recorded(play, rollout.id)
        if twice := [key for key, times in found.items() if times > 1 and key in wanted]:
            raise WrongError(f"{len(twice)} requests were counted twice")
        missing = wanted - found.keys()
        if not complete or not missing:
            return
        if time.monotonic() > deadline:
            raise WrongError(f"{len(missing)} of {len(wanted)} requests are in no record")
        time.sleep(0.01)


def _labels_are_there(play, service):
    """(2) Labels that were accepted, and those of a place in a file that is remembered, are in the records: people gave them."""
    remembered = (play.lane.home.path / MEMORY).exists()
    wanted = {*play.labelled, *(play.from_folder if remembered else ())}
    if missing := wanted - _labels(play, service.rollout.id) if wanted else ():
        raise WrongError(f"{len(missing)} of {len(wanted)} labels were taken and are in no record")


def _labels(play, rollout_id):
    path = play.lane.home.records / f"{rollout_id}.records"
    entries = records.read(path) if path.exists() else ()
    return {label.id for entry in entries if isinstance(entry, Intake) for label in entry.batch.labels}


def _began(play, rollout):
    """Whether the step is in the records; what is in them under a step that is not counts for nothing."""
    path = play.lane.home.records / f"{rollout.id}.records"
    return rollout.ended or any(
        isinstance(one, Began) and one.step == rollout.step for one in records.read(path)
    )


def _recorded(play, rollout_id):
    path = play.lane.home.records / f"{rollout_id}.records"
    keys = Counter()
    for entry in records.read(path) if path.exists() else ():
        if isinstance(entry, Intake):
            rows, copies = len(entry.batch.arm), entry.batch.mirrored or bytes(len(entry.batch.arm))
            keys.update(entry.batch.key[8 * row : 8 * row + 8] for row in range(rows) if not copies[row])
    return keys
