"""The main job end to end, through the commands that a user would type: one good version, and two that are not.

Everything runs in a directory of its own and is stopped at the end, whatever happens. The service is judged from outside:
its decisions come from `explain` and `history`, what callers got comes from the traffic maker, which knows the truth.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import deployctl
from deployctl.errors import Exit, InvalidError, UnavailableError
from deployctl.views import figures
from deployctl.views.console import note, say, show, show_document

SERVICE = "digits"
FIRST_MANIFEST = "manifests/digits-v2.yaml"
TRAFFIC = ("--rate", "1000", "--label-rate", "1000", "--label-delay", "1,3")
REPORT_SECONDS = 0.2
BASELINE_SECONDS = 3.0
READY_WITHIN = 30.0
ROLLOUT_WITHIN = 180.0
STOP_WITHIN = 30.0
INTERRUPTED = "interrupted"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A rollout and how it must end. `decided_by` are the metrics that may decide; empty: no single one does."""

    baseline: str
    candidate: str
    kind: str
    about: str
    ends: str
    exit_code: Exit
    decided_by: tuple[str, ...] = ()

    @property
    def manifest(self) -> str:
        """As it is typed."""
        return f"manifests/digits-v{self.candidate}.yaml"


CASES = (
    Case(
        baseline="1",
        candidate="2",
        kind="better",
        about="version 2 reads more digits right than version 1",
        ends="promoted",
        exit_code=Exit.DONE,
    ),
    Case(
        baseline="2",
        candidate="3",
        kind="fails at once",
        about="version 3 passed its warm-up, and raises or answers NaN on real digits",
        ends="rolled_back",
        exit_code=Exit.ROLLED_BACK,
        decided_by=("error-rate", "null-rate"),
    ),
    Case(
        baseline="2",
        candidate="4",
        kind="only labels show it",
        about="version 4 is quick, sure of itself and wrong; only the human labels, 1 to 3 s late, show it",
        ends="rolled_back",
        exit_code=Exit.ROLLED_BACK,
        decided_by=("label-error-rate",),
    ),
)


@dataclass(frozen=True, slots=True)
class Story:
    """What happened in one rollout. `answers` and `bad` are the candidate's until the decision, as callers got them."""

    version: str
    kind: str
    outcome: str
    exit_code: int
    decided_by: str | None
    sentence: str
    seconds: float | None
    answers: int
    bad: int
    climb: list[tuple[float, float]] = field(default_factory=list)
    live: str | None = None
    weight: float | None = None


class DemoError(Exception):
    """The demo did not go as it should; one line."""


def run_demo(which: str | None, as_json: bool) -> int:
    """Runs the demo. 0 when all three rollouts ended as they should, else 1 with what went wrong.

    Raises InvalidError for a demo that does not exist or without scikit-learn, UnavailableError without its files.
    """
    if which == "shadow":
        from deployctl.cli.demo_shadow import run_shadow_demo  # noqa: PLC0415 - it stands on this module

        return run_shadow_demo(as_json=as_json)
    if which == "blue-green":
        from deployctl.cli.demo_switch import run_switch_demo  # noqa: PLC0415 - as above

        return run_switch_demo(as_json=as_json)
    if which == "digits-shadow":
        from deployctl.cli.demo_digits_shadow import run_digits_shadow_demo  # noqa: PLC0415 - as above

        return run_digits_shadow_demo(as_json=as_json)
    _refuse(which)
    files = demo_files()
    home = Path(tempfile.mkdtemp(prefix="deployctl-demo-"))
    stage = Stage(home, tell=note if as_json else say, as_json=as_json)
    stories: list[Story] = []

    def play() -> None:
        copy_files(files, home, "digits", [case.manifest for case in CASES])
        _play(stage, stories)

    seen, problem = perform(stage, home, play)
    if as_json:
        show_document(_document(stories, seen, problem))
    elif stories:
        show(_last_screen(stories, seen))
    return Exit.DONE if problem is None else Exit.BUG


def perform(stage: Stage, home: Path, play: Callable[[], None]) -> tuple[Document, str | None]:
    """Play it to its end, and stop all that was started, whatever happens: what callers have seen, and what went wrong."""
    problem: str | None = None
    with _sigterm_as_interrupt():
        try:
            play()
        except DemoError as error:
            problem = str(error)
        except KeyboardInterrupt:
            problem = INTERRUPTED
        finally:
            seen = stage.stop()
    if problem in {None, INTERRUPTED}:
        shutil.rmtree(home, ignore_errors=True)
    if problem is not None:
        kept = "" if problem == INTERRUPTED else f"; state and logs are kept in {home}"
        note(f"\ndeployctl: the demo did not end as it should: {problem}{kept}")
    return seen, problem


def _play(stage: Stage, stories: list[Story]) -> None:
    stage.tell(
        "Real handwritten digits with human labels, four versions of a model, about 1,000 requests a second.\n"
        "Dwell and bake are short because this is a demo; in production they are minutes, not seconds."
    )
    stage.start_service()
    stage.start_traffic()
    for case in CASES:
        stage.tell(f"\n── {case.kind}: {case.about}")
        stage.wait_for_baseline(case.baseline)
        story = _roll_out(stage, case)
        stories.append(story)
        for line in _what_happened(story):
            stage.tell(line)
        _check(case, story)


def _roll_out(stage: Stage, case: Case) -> Story:
    before = stage.callers.latest()
    code = stage.follow("canary", "ramp", case.manifest)
    after = stage.callers.next()
    explained = stage.ask("explain", SERVICE)
    recorded = stage.ask("history", SERVICE)
    status = stage.ask("status", SERVICE)
    return read_story(
        case, code, Told(explained, recorded, status), before=before, after=after, callers=stage.callers
    )


def _check(case: Case, story: Story) -> None:
    wanted = case.ends.replace("_", " ")
    if story.outcome != case.ends or story.exit_code != case.exit_code:
        raise DemoError(
            f"version {case.candidate} should be {wanted} (exit {int(case.exit_code)}), "
            f"but is {story.outcome.replace('_', ' ')} (exit {story.exit_code}): {story.sentence}"
        )
    if case.decided_by and story.decided_by not in case.decided_by:
        raise DemoError(
            f"version {case.candidate} should be {wanted} by {' or '.join(case.decided_by)}, "
            f"but {story.decided_by} decided: {story.sentence}"
        )


# What the service and the callers tell, read in one place


@dataclass(frozen=True, slots=True)
class Told:
    """The documents of `explain`, `history` and `status` after a rollout."""

    explained: Document
    recorded: Document
    status: Document

    @property
    def events(self) -> list[Document]:
        """The events of this rollout, oldest first."""
        rollouts = self.recorded.get("rollouts") or []
        wanted = self.explained.get("rollout")
        for rollout in reversed(rollouts):
            if wanted in {None, rollout.get("rollout")}:
                return list(rollout.get("events") or [])
        return list(self.explained.get("events") or [])


def read_story(
    case: Case, code: int, told: Told, *, before: Document, after: Document, callers: Callers
) -> Story:
    """One rollout, out of everything that is known of it afterwards."""
    events = told.events
    end = next((event for event in events if event.get("phase") in {"promoted", "rolled_back"}), {})
    outcome = str(told.explained.get("phase") or end.get("phase") or "unknown")
    # A promoted version goes on answering: only what came before the decision belongs to the rollout.
    until = (callers.at(_wall(end)) or after) if outcome == "promoted" else after
    answers, bad = answers_and_bad(before, until, case.candidate)
    return Story(
        version=case.candidate,
        kind=case.kind,
        outcome=outcome,
        exit_code=code,
        decided_by=told.explained.get("decided_by"),
        sentence=str(told.explained.get("sentence") or end.get("reason") or "no reason was given"),
        seconds=_between(events[0], end) if events else None,
        answers=answers,
        bad=bad,
        climb=_climb(events),
        live=_label(told.status.get("live")),
        weight=told.status.get("weight"),
    )


def answers_and_bad(before: Document, after: Document, version: str) -> tuple[int, int]:
    """Answers of a version between two reports, and how many were wrong, null or failed.

    A request without any answer names no version; while a canary runs it is counted as the canary's.
    """

    def count(report: Document, name: str, *what: str) -> int:
        seen = (report.get("by_version") or {}).get(name) or {}
        return sum(int(seen.get(key) or 0) for key in what)

    def more(name: str, *what: str) -> int:
        return count(after, name, *what) - count(before, name, *what)

    nameless = more("unknown", "failed")
    return more(version, "answers") + nameless, more(version, "wrong", "null", "failed") + nameless


def _climb(events: list[Document]) -> list[tuple[float, float]]:
    """(seconds since the start, weight) wherever the weight changed."""
    points = [
        (float(event["at"]) - float(events[0].get("at") or 0), float(event["weight"]))
        for event in events
        if isinstance(event.get("at"), int | float) and isinstance(event.get("weight"), int | float)
    ]
    start = (0.0, 0.0)
    return [new for old, new in pairwise([start, *points]) if new[1] != old[1]]


def _between(first: Document, last: Document) -> float | None:
    try:
        return round(float(last["at"]) - float(first["at"]), 2)
    except (KeyError, TypeError, ValueError):
        return None


def _wall(event: Document) -> float:
    try:
        return datetime.fromisoformat(str(event.get("wall"))).timestamp()
    except ValueError:
        return 0.0


def _label(version: object) -> str | None:
    value = version.get("version") if isinstance(version, dict) else version
    return None if value is None else str(value)


class Callers:
    """The reports of the traffic maker, one JSON document per line."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def latest(self) -> Document:
        """The last whole report, empty before the first."""
        return next(reversed(self._reports()), {})

    def next(self) -> Document:
        """The first report from now on, or the latest when none comes."""
        asked = time.time()
        deadline = time.monotonic() + 20 * REPORT_SECONDS
        while (report := self.latest()).get("wall", 0) < asked and time.monotonic() < deadline:
            time.sleep(REPORT_SECONDS / 4)
        return report

    def at(self, wall: float) -> Document | None:
        """The last report before a moment; None before the first."""
        return next((report for report in reversed(self._reports()) if report.get("wall", 0) <= wall), None)

    def last_words(self) -> str:
        """The last line that is no report: why the traffic maker ended, if it did not mean to."""
        lines = self._lines()
        return next((line for line in reversed(lines) if _json(line) is None), "no message")

    def _reports(self) -> list[Document]:
        return [report for line in self._lines() if (report := _json(line)) is not None]

    def _lines(self) -> list[str]:
        try:
            return [line for line in self._log.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            return []


class Stage:
    """The processes of one demo: what starts here is stopped here."""

    def __init__(
        self, home: Path, tell: Callable[[str], None], *, as_json: bool, service: str = SERVICE
    ) -> None:
        self.tell = tell
        self.callers = Callers(home / "traffic.log")
        self._home = home
        self._service = service
        self._as_json = as_json
        self._traffic: subprocess.Popen[bytes] | None = None
        self._service_started = False
        self._supervisor: int | None = None
        self._url = ""
        package_home = str(Path(deployctl.__file__).parent.parent)
        path = os.pathsep.join(part for part in (package_home, os.environ.get("PYTHONPATH")) if part)
        self._environment = {
            **os.environ,
            "DEPLOYCTL_STATE_DIR": str(home / "state"),
            "PYTHONPATH": path,  # a clone that is not installed works, too
        }

    def start_service(self, manifest: str = FIRST_MANIFEST) -> None:
        """`up`, and where it listens."""
        self._service_started = True
        code = self.follow("up", manifest, "--detach")
        if code != Exit.DONE:
            raise DemoError(f"`deployctl up` ended with exit code {code}")
        status = self.ask("status", self._service)
        self._supervisor = (status.get("pids") or {}).get("supervisor")
        self._url = str(status.get("url") or "")
        if not self._url:
            raise DemoError("`deployctl status` shows no url")

    def start_traffic(self) -> None:
        """Callers, and people who label what they sent."""
        shown = ("examples/digits/traffic.py", *TRAFFIC)
        self.start_script(*shown, quietly=("--verbose", "--every", str(REPORT_SECONDS)))

    def start_script(self, script: str, *more: str, quietly: tuple[str, ...] = ()) -> None:
        """A script of the examples against the service; in a session of its own, so that Ctrl-C does not reach it.

        `quietly` is not shown to the user.
        """
        arguments = (script, "--url", self._url, *more)
        self.tell(f"\n$ python {' '.join(arguments)} &")
        with (self._home / "traffic.log").open("wb") as log, (self._home / "traffic.json").open("wb") as out:
            self._traffic = subprocess.Popen(  # noqa: S603 - our own script
                [sys.executable, *arguments, *quietly],
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    def wait_for_baseline(self, version: str) -> None:
        """Traffic must have reached the baseline for a while: a canary is compared with what it learns from it."""
        assert self._traffic is not None
        answers = answers_and_bad({}, self.callers.latest(), version)[0]
        deadline = time.monotonic() + READY_WITHIN
        while answers_and_bad({}, self.callers.latest(), version)[0] <= answers:
            if self._traffic.poll() is not None:
                raise DemoError(f"the traffic maker ended: {self.callers.last_words()}")
            if time.monotonic() > deadline:
                raise DemoError(f"version {version} answered nothing for {READY_WITHIN:g} s")
            time.sleep(REPORT_SECONDS / 2)
        time.sleep(BASELINE_SECONDS)

    def follow(self, *arguments: str) -> int:
        """A command that talks to the user itself; its exit code."""
        self.tell(f"\n$ deployctl {' '.join(arguments)}")
        try:
            return subprocess.run(  # noqa: S603 - our own command line
                [sys.executable, "-m", "deployctl", *arguments],
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if self._as_json else None,
                timeout=ROLLOUT_WITHIN,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise DemoError(
                f"`deployctl {' '.join(arguments)}` has not ended in {ROLLOUT_WITHIN:g} s"
            ) from None

    def ask(self, *arguments: str) -> Document:
        """A command's JSON document."""
        done = self._quietly(*arguments, "-o", "json")
        answer = _json(done.stdout)
        if done.returncode != 0 or answer is None:
            raise DemoError(
                f"`deployctl {' '.join(arguments)} -o json` ended with exit code {done.returncode}: "
                f"{done.stderr.strip() or 'no JSON document'}"
            )
        return answer

    def stop(self) -> Document:
        """Ends traffic and service and returns what callers have seen in all. Safe whatever has been started."""
        self.stop_traffic()
        if self._service_started:
            self.tell(f"\n$ deployctl down {self._service}")
            try:
                stopped = self._quietly("down", self._service).returncode == 0
            except DemoError:
                stopped = False
            if not stopped and self._supervisor is not None:
                with suppress(ProcessLookupError):  # its children go with it
                    os.kill(self._supervisor, signal.SIGKILL)
        return self._summary()

    def stop_traffic(self) -> None:
        """No more requests from here on."""
        if self._traffic is not None:
            _end(self._traffic)

    def _summary(self) -> Document:
        """Without the moment: it is there to be laid beside a journal."""
        summary = None
        with suppress(FileNotFoundError):
            summary = _json((self._home / "traffic.json").read_text(encoding="utf-8"))
        seen = self.callers.latest() if summary is None else summary
        return {key: value for key, value in seen.items() if key != "wall"}

    def _quietly(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - our own command line
                [sys.executable, "-m", "deployctl", *arguments],
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=STOP_WITHIN,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DemoError(
                f"`deployctl {' '.join(arguments)}` has not answered in {STOP_WITHIN:g} s"
            ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN / 3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Before it starts


def _refuse(which: str | None) -> None:
    if which not in {None, "canary"}:
        raise InvalidError(f"unknown demo {which!r}; known: canary, shadow, digits-shadow, blue-green")
    needs_digits()


def needs_digits() -> None:
    """Raises InvalidError where the digits are missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise InvalidError(
            "the demo's digits come with scikit-learn, which is missing: pip install 'deployctl[demo]'"
        )


def demo_files() -> Path:
    """The folder that holds manifests/ and examples/: inside the package when installed, else the clone."""
    package = Path(deployctl.__file__).parent
    for folder in (package / "_demo", package.parent):
        if (folder / FIRST_MANIFEST).is_file() and (folder / "examples/digits/traffic.py").is_file():
            return folder
    raise UnavailableError("the demo's manifests and models are missing: run it in a clone, or install again")


def copy_files(files: Path, home: Path, example: str, manifests: Iterable[str]) -> None:
    """Manifests and models side by side as they were; the port is any free one, so a taken 8080 is no matter."""
    folder = f"examples/{example}"
    shutil.copytree(files / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (home / "manifests").mkdir()
    for manifest in manifests:
        text = (files / manifest).read_text(encoding="utf-8")
        (home / manifest).write_text(text.replace("127.0.0.1:8080", "127.0.0.1:0"), encoding="utf-8")


# What is shown


def _what_happened(story: Story) -> Iterator[str]:
    after = "" if story.seconds is None else f" after {story.seconds:.1f} s"
    yield ""
    yield f"  version {story.version} {story.outcome.replace('_', ' ')}{after}"
    yield f"  why      {story.sentence}"
    if story.climb:
        yield f"  weight   {', '.join(f'{weight:g} % at {at:.1f} s' for at, weight in story.climb)}"
    yield f"  callers  {_answers_in_words(story)}"
    yield f"  now      version {story.live} is live, weight of the candidate as the router has it: {figures.weight(story.weight)}"


def _answers_in_words(story: Story) -> str:
    if not story.answers:
        return f"version {story.version} answered nobody"
    share = figures.percent(story.bad / story.answers)
    return (
        f"{figures.count(story.answers)} answers by version {story.version} until the decision, "
        f"{figures.count(story.bad)} of them bad (wrong, null or failed: {share})"
    )


def _last_screen(stories: list[Story], seen: Document) -> Iterator[Any]:
    from rich.table import Table  # noqa: PLC0415 - 0.05 s that --help does without
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("version", "kind", "outcome", "decided by"):
        table.add_column(name, no_wrap=True)
    for name in ("answers", "bad", "seconds"):
        table.add_column(name, no_wrap=True, justify="right")
    for story in stories:
        table.add_row(
            story.version,
            story.kind,
            Text(story.outcome.replace("_", " "), style="green" if story.outcome == "promoted" else "red"),
            story.decided_by or "all metrics",
            figures.count(story.answers),
            figures.count(story.bad),
            figures.UNKNOWN if story.seconds is None else f"{story.seconds:.1f}",
        )
    yield Text("\nWhat was decided, and why", style="bold")
    yield table
    yield Text()
    for story in stories:
        yield Text.assemble((f"version {story.version}, {story.kind}: ", "bold"), story.sentence)
    yield Text()
    yield from (Text(line) for line in _closing_lines(stories, seen))


def _closing_lines(stories: list[Story], seen: Document) -> Iterator[str]:
    yield "answers and bad: what callers got from the candidate until the decision; bad is wrong, null or failed."
    for story in stories:
        if story.outcome == "rolled_back":
            yield f"a failure of the kind “{story.kind}” reached {figures.count(story.bad)} callers before it was rolled back."
    failed = int(seen.get("failed") or 0)
    yield f"all in all {figures.count(seen.get('sent'))} requests, {figures.count(failed)} failed{_blame(seen, failed)}."
    yield "Dwell and bake were short because this is a demo: see minDwell, bake and stepTimeout in manifests/."


def _blame(seen: Document, failed: int) -> str:
    """Who failed them, if anybody: a switch must not, a broken version may."""
    shares = {name: int(counts.get("failed") or 0) for name, counts in (seen.get("by_version") or {}).items()}
    words = [
        f"{figures.count(count)} by {'nobody known' if name == 'unknown' else f'version {name}'}"
        for name, count in shares.items()
        if count
    ]
    return f" ({', '.join(words)})" if failed and words else ""


def _document(stories: list[Story], seen: Document, problem: str | None) -> Document:
    return {
        "schema_version": 1,
        "ok": problem is None,
        "problem": problem,
        "rollouts": [asdict(story) for story in stories],
        "traffic": seen,
    }


def _json(text: str) -> Document | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
