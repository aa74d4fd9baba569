"""Whole rollouts as golden transcripts: commands in, everything that happened out.

A transcript is read from top to bottom. `# ` is a remark; `> ` is a command, the lines under it are its input up to `----`, and
what follows, up to the next blank line or command, is what happened. To write a new one, write remarks and commands and run
`pytest tests/test_transcripts.py --rewrite`, which records what happens. Commit what it changed only if you understand why.

    > callers per_second=400 labelled=0.2 seed=1     who calls, and how many of their answers people label
    > version 2 errors=5% wrong=3% latency_ms=10     how a version answers from now on
    > incident 30%                                   this share of all answers fails, whoever gives them; 0% ends it
    > up                                             the service starts with version 1
    > up people                                      … or with people alone
    > canary ramp 2                                  with single keys of `fakes.CANARY` as YAML below it
    > shadow 2 [3 …]                                 with single keys of `fakes.SHADOW` as YAML below it
    > blue-green switch 2                            with single keys of `fakes.SWITCH` as YAML below it
    > promote [--full --reason TEXT], pause, resume, rollback [--to VERSION]
    > watch 10s | until ended [60s] | until paused | until step 3
    > restart                                        kill -9 of the controller, and another one in its place
    > suspend 600s                                   nothing runs for so long, callers included
    > status                                         phase, versions, traffic, and who was answered by whom

Times are rollout time. A split is printed as the routers read it back, workers as they are wanted.
"""

import shlex
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Self

import pytest
import yaml
from fakes import Behaviour, FakeService

from deployctl.core.rollout import Event, Kind
from deployctl.core.verdict import MetricVerdict

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_whole_rollout_goes_as_its_transcript_tells(transcript: Path, tmp_path: Path, rewrite: bool):
    written = transcript.read_text(encoding="utf-8")
    with Stage(tmp_path) as stage:
        played = "\n".join(replay(written, stage)) + "\n"
    if rewrite:
        transcript.write_text(played, encoding="utf-8")
    assert played == written or rewrite


def test_a_restart_in_mid_ramp_changes_neither_events_nor_evidence(tmp_path: Path):
    """The story with restarts is the story without them, line by line."""
    folder = Path(__file__).parent / "transcripts"
    restarted = (folder / "the_controller_is_killed_in_mid_ramp.txt").read_text(encoding="utf-8")
    calm = "\n".join(line for line in restarted.splitlines() if line != "> restart")
    told = {}
    for name, text in (("restarted", restarted), ("calm", calm)):
        (tmp_path / name).mkdir()
        with Stage(tmp_path / name) as stage:
            told[name] = happened("\n".join(replay(text, stage)))

    assert told["restarted"].count(RESTARTED) >= 3
    calm_story = [line for line in told["restarted"] if line != RESTARTED]
    assert calm_story == [line for line in told["calm"] if line != RESTARTED]


RESTARTED = "another controller took over"


def happened(text: str) -> list[str]:
    """What a transcript says happened, without commands and blank lines."""
    return [line for line in text.splitlines() if line and not line.startswith(("#", ">", "----"))]


def replay(text: str, stage: "Stage") -> Iterator[str]:
    """Remarks and commands as they are written, each command with what happens now."""
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if not line.startswith("> "):
            yield line
            continue
        yield line
        paragraph = list(takewhile(lambda line: line and not line.startswith("> "), lines))
        del lines[: len(paragraph)]
        given = paragraph[: paragraph.index("----")] if "----" in paragraph else []
        played = list(stage.play(line[2:], "\n".join(given)))
        yield from [*given, "----", *played] if given or played else []


class Stage:
    """Plays commands on a fake service and tells what happened since the last one."""

    def __init__(self, state: Path) -> None:
        self.service = FakeService(state, {"1": Behaviour()})
        self._told = 0
        self._split = None
        self._workers: list[str] = []
        self._verbs: dict[str, Callable[[list[str], str], str | None]] = {
            "callers": self._callers,
            "version": self._version,
            "incident": self._incident,
            "up": lambda words, _given: self.service.up(None if words == ["people"] else "1"),
            "shadow": lambda words, given: self.service.shadow(*words, shadow=yaml.safe_load(given)),
            "canary": lambda words, given: self.service.ramp(words[1], yaml.safe_load(given)),
            "blue-green": lambda words, given: self.service.switch(words[1], yaml.safe_load(given)),
            "watch": self._watch,
            "promote": self._promote,
            "pause": lambda _words, _given: self.service.pause(),
            "resume": lambda _words, _given: self.service.resume(),
            "rollback": self._rollback,
            "restart": self._restart,
            "suspend": self._suspend,
            "status": lambda _words, _given: self._status(),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.close()

    def play(self, command: str, given: str) -> Iterator[str]:
        verb, *words = shlex.split(command)
        answer = self._verbs[verb](words, given)
        yield from self._news()
        if answer:
            yield answer

    # ── what a transcript can do ───────────────────────────────────────────────────────────────────────────────

    def _callers(self, words: list[str], _given: str) -> None:
        for name, value in (word.split("=") for word in words):
            if name == "label_delay":
                low, high = value.removesuffix("s").split("-")
                self.service.callers.label_delay = (float(low), float(high))
            else:
                setattr(self.service.callers, name, int(value) if name in {"seed", "keys"} else _share(value))
        self.service.callers.__post_init__()

    def _version(self, words: list[str], _given: str) -> None:
        version, *behaviour = words
        changes = {name: _share(value) for name, value in (word.split("=") for word in behaviour)}
        self.service.with_behaviour(version, **changes)

    def _incident(self, words: list[str], _given: str) -> None:
        self.service.callers.shared_errors = _share(words[0])

    def _watch(self, words: list[str], _given: str) -> None:
        if words[0] != "until":
            return self.service.watch(_seconds(words[0]))
        reached = {
            "ended": lambda: self.service.rollout.ended,
            "finished": lambda: self.service.rollout.finished,
            "paused": lambda: self.service.rollout.phase.value == "paused",
            "step": lambda: self.service.rollout.step + 1 >= int(words[2]),
        }[words[1]]
        limit = words[-1] if words[-1].endswith("s") else "120s"
        self.service.watch(_seconds(limit), reached)
        assert reached(), f"{' '.join(words)}: not within {limit}: {self._status()}"
        return None

    def _promote(self, words: list[str], _given: str) -> str:
        reason = words[words.index("--reason") + 1] if "--reason" in words else ""
        return self.service.promote(reason, full="--full" in words)

    def _rollback(self, words: list[str], _given: str) -> str:
        return self.service.rollback(to=words[words.index("--to") + 1] if "--to" in words else None)

    def _restart(self, _words: list[str], _given: str) -> str:
        self.service.restart()
        return RESTARTED

    def _suspend(self, words: list[str], _given: str) -> None:
        self.service.clock += _seconds(words[0])
        self.service.callers.skip_to(self.service.clock)

    # ── what happened ──────────────────────────────────────────────────────────────────────────────────────────

    def _news(self) -> Iterator[str]:
        told = self._told
        applied = {split.number: split for split in self.service.traffic.applied}
        self.service.traffic.applied.clear()
        for story in self.service.controller.stories.values():
            for event, _ in story:
                if event.seq > told:
                    self._told = event.seq
                    yield from _event_lines(event)
                    if event.seq in applied:
                        yield f"          traffic: {_split(applied.pop(event.seq))}"
        yield from (f"          traffic: {_split(split)}" for split in applied.values())
        if self.service.workers.wanted != self._workers:
            self._workers = self.service.workers.wanted
            yield f"          workers: {', '.join(self._workers)}"

    def _status(self) -> str:
        service = self.service.controller.service
        rollout = service.rollout
        previous = service.previous.version if service.previous else "none"
        lines = [f"live {service.live.version}, previous {previous}, {_split(self.service.traffic.in_force)}"]
        if rollout is not None:
            finished = " and finished" if rollout.finished else ""
            waits = f", waits for {rollout.waits_for}" if rollout.waits_for else ""
            lines.append(
                f"rollout {rollout.id}: {rollout.phase.value}{finished}, "
                f"step {rollout.step + 1}/{len(rollout.plan.steps)}, weight {rollout.weight:g} %{waits}"
            )
            if not rollout.ended:
                verdict = self.service.controller.full_verdict()
                lines += [f"verdict {verdict.result.value}: {verdict.reason}"]
                lines += [f"  {_metric(part)}" for part in verdict.metrics]
        answers = (
            f"version {version} answered {n}, {bad} of them bad"
            for version, (n, bad) in sorted(self.service.callers.served.items())
        )
        return "\n".join([*lines, *answers])


def _event_lines(event: Event) -> Iterator[str]:
    if event.kind is Kind.STARTED:
        weights = ", ".join(f"{step.weight:g}" for step in event.plan.steps)
        tried = " and ".join(version.version for version in event.plan.candidates)
        yield f"{event.at:7.2f}s  started: version {tried} against {event.plan.baseline.version}, steps {weights} % ({event.by})"
        return
    step = f" to step {event.step + 1}" if event.kind is Kind.CLIMBED else ""
    yield f"{event.at:7.2f}s  {event.kind.value}{step}: {event.reason} ({event.by}, {event.cause.value})"
    for part in event.verdict.metrics if event.verdict else ():
        yield f"          {_metric(part)}"


def _metric(part: MetricVerdict) -> str:
    return (
        f"{part.name:<16} {part.result.value:<13} baseline {part.baseline.bad}/{part.baseline.n}, "
        f"candidate {part.candidate.bad}/{part.candidate.n}; harm {part.harm:.3g} of {part.harm_threshold:g}, "
        f"safe {part.safe:.3g} of {part.safe_threshold:g} beyond +{100 * part.margin:.3g} points"
    )


def _split(split) -> str:
    if split.candidate is None:
        return f"all to version {split.baseline.version}"
    if split.copies:
        copied = ", ".join(copy.version.version for copy in split.copies)
        rest = f"copies of {split.mirror:g} % to version {copied}"
        if not split.weight:
            return f"all to version {split.baseline.version}, {rest}"
        return f"{split.weight:g} % to version {split.candidate.version}, the rest to version {split.baseline.version}, {rest}"
    return f"{split.weight:g} % to version {split.candidate.version}, the rest to version {split.baseline.version}"


def _share(text: str) -> float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))
