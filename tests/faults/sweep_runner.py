"""One point of the sweep: a chapter, a fault in it, perhaps another one in the recovery from the first; then the checker.

As a script it works for `sweep.py`: tasks come as JSON lines on stdin, results go out as JSON lines.
"""

import json
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import sweep_checker
import sweep_twins
from sweep_faults import DEADLY, FULL, SYSTEM_CALLS, Fault, Strace, failpoints, strace_works, traced_points
from sweep_lane import EndedError, HangError, HungUpError, Lane
from sweep_play import Play, WrongError
from sweep_stories import CHAPTERS

from deployctl.errors import Exit

BY_NAME = {chapter.name: chapter for chapter in CHAPTERS}
POINT_SECONDS = 120
"""What a point may take at most, whatever it waits for: the lane itself must never hang."""


@dataclass
class Result:
    """What became of one point. `end` is "kept" (all promises), "violated", "hung", or "not reached" (the story was over first)."""

    end: str = "kept"
    words: str = ""
    seen: list = field(default_factory=list)
    """How each controller with a fault ended."""


class Runner:
    """Plays points in one lane; `shared` has the manifests and the snapshots of all chapters."""

    def __init__(self, root, shared):
        self.lane = Lane(root)
        self.shared = shared
        self._traced: Strace | None = None
        self._came = False
        self._mode: str | None = None

    # ── clean runs ─────────────────────────────────────────────────────────────────────────────────────────────

    def rehearse(self, chapter, *, takes_over=False, trace=None):
        """A run without a fault: keeps its end for the chapters after it, and gives how often each function was called."""
        play = self._begin(chapter, trace, takes_over=takes_over)
        try:
            self._await_service()
            chapter.play(play)
            counts = self.lane.board.counts()
            self._untrace()
            sweep_checker.check_controller(play, exact=True)
        finally:
            self._end_controller()
        if not takes_over:
            kept = self._snapshot(chapter.name)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self.lane.home.path, kept, ignore=_no_sockets)
        return counts

    # ── points ─────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, chapter, faults, *, takes_over=False, parity=0, twin=None):
        """One point; what is wrong is in the result, never raised."""
        result = Result()
        self.lane.sabotage = sweep_twins.TWINS[twin] if twin else None
        signal.alarm(POINT_SECONDS)
        try:
            self._point(chapter, faults, takes_over, parity, result)
        except HangError as error:
            result.end, result.words = "hung", f"{error}; {self._last_words()}"
        except Exception as error:  # noqa: BLE001 - the journal's own errors, and a bug of the sweep: each has to be looked at
            result.end, result.words = "violated", f"{type(error).__name__}: {error}; {self._last_words()}"
        finally:
            signal.alarm(0)
        self._untrace()
        return result

    def _point(self, chapter, faults, takes_over, parity, result):
        first, *more = faults
        play = self._begin(chapter, first, takes_over=takes_over)
        try:
            self._await_service()
            chapter.play(play)
            if not self._fault_came():
                result.end = "not reached"
                return
            self._settled(play)
            sweep_checker.check_controller(play, exact=False)
            if first.call != "fsync":  # one beside the loop is only noticed later, and costs a batch then
                sweep_checker.check_outcomes_count_again(play)
            self._end_controller()
        except EndedError:
            if not self._fault_came():
                raise WrongError("the controller ended and no fault had come") from None
        except HungUpError:
            if first.by != "strace" or not self._fault_came():  # strace may hit the connection itself
                raise
            self._end_controller()
        result.seen.append(self._ending(play, first))
        if not self.lane.exits:
            sweep_checker.check_router_alone(play)
        for fault in more:
            self._recover(chapter, play, fault)
            with suppress(EndedError, HungUpError):
                self._await_service()
                self._settled(play)
            self._end_controller()
            ending = self._ending(play, fault)
            result.seen.append(ending if self._fault_came() else "not reached")
        self._recover(chapter, play, None)
        self._await_service()
        play.traffic_flows = True
        exact = all(fault.mode in DEADLY for fault in faults)
        sweep_checker.check_controller(play, exact=exact)
        sweep_checker.check_it_goes_on(play, promote=parity % 2 == 1)

    def _begin(self, chapter, fault, *, takes_over):
        """A service in the state of this chapter, and its controller: the first one, or the successor of one that was killed."""
        lane = self.lane
        before = self._snapshot(chapter.after) if chapter.after else None
        lane.begin(before, self.shared / f"{chapter.manifest}.yaml")
        if chapter.spoil:
            chapter.spoil(lane.home)
        play = Play(lane, self._fault_came, self._fault_over, chapter.name, chapter.from_folder)
        recover = chapter.recover
        if takes_over:
            self._came, recover = False, False
            lane.start_controller(recover=chapter.recover)
            self._await_service()
            lane.controller.end()
            play.traffic_flows = True
        self._arm(fault, recover=recover)
        return play

    def _arm(self, fault, *, recover):
        self._came, self._mode = False, fault.mode if isinstance(fault, Fault) else None
        self._traced = self.lane.start_controller(fault, recover=recover)

    def _recover(self, chapter, play, fault):
        """Another controller on the same sockets; after a start that failed, another service."""
        lane = self.lane
        self._untrace()
        if lane.exits:
            sweep_checker.check_clean_start(play)
            lane.end_router()
            lane.fence, lane.exits = 0, []
            play.traffic_flows = False
        self._arm(fault, recover=chapter.recover and lane.router is None)

    def _await_service(self):
        """Until it serves: a call waits for that."""
        self.lane.call("GET", "/v1/status")

    def _settled(self, play):
        """The fault is over, and what it was in the way of has been done since."""
        if self.lane.board.came:
            self.lane.wait(lambda: self.lane.board.lifted, "room on the disk")
        self.lane.call("GET", "/v1/status")

    def _end_controller(self):
        """SIGKILL; strace lets go first, or a zombie would be waited for."""
        self._fault_came()
        self.lane.controller.kill()
        self._untrace()
        self.lane.controller.end()

    def _ending(self, play, fault):
        """How a controller with a fault ended, and whether it may end so."""
        code = self.lane.controller.code
        if self.lane.exits:
            if play.traffic_flows or self.lane.fence > 1:
                raise WrongError(f"the service ended over it: {self.lane.exits[-1]}")
            return "start refused"
        if code == Exit.UNAVAILABLE and self.lane.fence > 1:
            return "to be tried again"
        if code == 0 and fault.by == "strace":
            return (
                "left"  # it was its link to the supervisor that was hit, and so the supervisor is gone for it
            )
        if code not in {-9, None}:
            raise WrongError(f"the controller ended with {code}")
        return "killed" if fault.mode in DEADLY else "lived on"

    def _fault_came(self):
        if self._came:
            return True
        if self.lane.board.came or (self._traced is not None and self._struck()):
            self._came = True
        return self._came

    def _fault_over(self):
        """Whether it cannot be in the way any more. Strace counts for each thread, so it may come once more."""
        over = self._mode != FULL or self.lane.board.lifted
        return self._fault_came() and self._traced is None and over

    def _struck(self):
        ended = not self.lane.controller.running and self.lane.controller.code == -9
        return self._traced.struck or (ended and not self.lane.exits)

    def _untrace(self):
        if self._traced is not None:
            self._traced.end()
        self._traced = None

    def _snapshot(self, name):
        return self.shared / "after" / name.replace(" ", "-")

    def _last_words(self):
        controller = self.lane.controller
        said = controller.said.read_text(errors="replace") if controller else ""
        return f"said: {' | '.join(said.strip().splitlines()[-3:])}"


def _no_sockets(folder, names):
    return [name for name in names if (Path(folder) / name).is_socket() or name == "workers"]


def _out_of_time(_signal, frame):
    where = traceback.extract_stack(frame)[-1]
    raise HangError(f"a point took more than {POINT_SECONDS} s, at {where.name}:{where.lineno}")


def main():
    signal.signal(signal.SIGALRM, _out_of_time)
    root, shared = map(Path, sys.argv[1:3])
    runner = Runner(root, shared)
    for line in sys.stdin:
        task = json.loads(line)
        answer = _rehearsed(runner, task) if task["rehearse"] else _ran(runner, task)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _rehearsed(runner, task):
    chapter, takes_over = BY_NAME[task["chapter"]], task["takes_over"]
    counts = runner.rehearse(chapter, takes_over=takes_over)
    faults = list(failpoints(counts))
    if task["strace"] and strace_works():
        runner.rehearse(chapter, takes_over=takes_over, trace=",".join(SYSTEM_CALLS))
        faults += traced_points(runner.lane.root / "strace.log")
    return [asdict(fault) for fault in faults]


def _ran(runner, task):
    faults = [Fault(**fault) for fault in task["faults"]]
    given = {key: task[key] for key in ("takes_over", "parity", "twin")}
    return asdict(runner.run(BY_NAME[task["chapter"]], faults, **given))


if __name__ == "__main__":
    main()
