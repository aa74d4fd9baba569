"""Blue-green end to end: a better version is switched to and taken back by hand, a wrong one is found out before it answers anybody."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from deployctl.cli.demo import (
    SERVICE,
    DemoError,
    Stage,
    answers_and_bad,
    copy_files,
    demo_files,
    needs_digits,
    perform,
)
from deployctl.errors import Exit
from deployctl.views.console import note, say, show_document

GOOD, WRONG = "manifests/digits-blue-green.yaml", "manifests/digits-blue-green-v4.yaml"

Play = Callable[[Stage, "list[Scene]"], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """What was done, with what exit code, which version was live then, and why."""

    command: str
    exit_code: int
    live: str | None
    why: str


def run_switch_demo(*, as_json: bool) -> int:
    """Runs the demo. 0 when all went as it should, else 1 with what went wrong.

    Raises InvalidError without scikit-learn, UnavailableError without its files.
    """
    return run_scenes((GOOD, WRONG), _play, as_json=as_json)


def run_scenes(manifests: tuple[str, ...], play_on: Play, *, as_json: bool) -> int:
    """Plays scenes of the digits in a folder of their own and says how each ended; as `run_switch_demo`."""
    needs_digits()
    files = demo_files()
    home = Path(tempfile.mkdtemp(prefix="deployctl-demo-"))
    stage = Stage(home, tell=note if as_json else say, as_json=as_json)
    scenes: list[Scene] = []

    def play() -> None:
        copy_files(files, home, "digits", manifests)
        play_on(stage, scenes)

    seen, problem = perform(stage, home, play)
    if as_json:
        told = [asdict(scene) for scene in scenes]
        show_document(
            {"schema_version": 1, "ok": problem is None, "problem": problem, "scenes": told, "traffic": seen}
        )
    elif problem is None:
        say("")
        for scene in scenes:
            say(f"{scene.command}: {scene.why}")
        say(f"all in all {seen.get('sent')} requests, {seen.get('failed')} failed.")
    return Exit.DONE if problem is None else Exit.BUG


def _play(stage: Stage, scenes: list[Scene]) -> None:
    stage.tell(
        "Real handwritten digits with human labels. The new version is checked on copies of the requests before anybody"
    )
    stage.tell(
        "is answered by it; then all callers go to it at once, and the version before stays beside it."
    )
    stage.start_service(GOOD)
    stage.start_traffic()
    stage.wait_for_baseline("1")
    stage.tell("\n── better: version 2 reads more digits right than version 1")
    act(stage, scenes, ("blue-green", "switch", GOOD, "--until", "promoted"), Exit.DONE, live="2")
    stage.tell("\n── and back: one command, the version before is still warm")
    act(stage, scenes, ("rollback", SERVICE, "--reason", "just to show it"), Exit.DONE, live="1")
    stage.tell(
        "\n── wrong: version 4 is quick and sure of itself; labels of copied requests show it before the switch"
    )
    act(stage, scenes, ("blue-green", "switch", WRONG), Exit.ROLLED_BACK, live="1")
    if (answered := answers_and_bad({}, stage.callers.next(), "4")[0]) > 0:
        raise DemoError(f"version 4 should have answered nobody, and answered {answered}")


def act(stage: Stage, scenes: list[Scene], command: tuple[str, ...], code: Exit, *, live: str) -> None:
    """One command of a scene. Raises DemoError unless it ends with this exit code and this version live."""
    ended = stage.follow(*command)
    why = str(stage.ask("explain", SERVICE).get("sentence") or "")
    now = stage.ask("status", SERVICE).get("live")
    scenes.append(Scene(" ".join(command), ended, now, why))
    if ended != code or now != live:
        raise DemoError(
            f"`{' '.join(command)}` should end with exit {int(code)} and version {live} live, "
            f"but did with {ended} and version {now}: {why}"
        )
