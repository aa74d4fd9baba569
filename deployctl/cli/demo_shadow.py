"""Shadow mode end to end: a first model looks over the inspectors' shoulders, and is caught when the light in the hall dims.

People decide, as before; the model answers copies, and nothing is done with what it says. It is the same model both times: only the
labels tell that it no longer sees what people see.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deployctl.cli.demo import DemoError, Stage, copy_files, demo_files, perform
from deployctl.errors import Exit
from deployctl.views.console import note, say, show_document

SERVICE = "phones"
MANIFEST = "manifests/phones-shadow.yaml"
LINE = "examples/phone-inspection/line.py"
PACE = ("--rate", "60", "--hurry", "10")
DIMS_AT = "2"


@dataclass(frozen=True, slots=True)
class Scene:
    """One shadow: what is different about it, and how it must end."""

    about: str
    light: tuple[str, ...]
    exit_code: Exit


SCENES = (
    Scene("normal light: the model sees what the inspectors see", (), Exit.DONE),
    Scene(
        "the light in the hall dims, and nobody tells the model",
        ("--light-dims-at", DIMS_AT),
        Exit.ROLLED_BACK,
    ),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """How one shadow ended, and the first sentence of its report."""

    about: str
    exit_code: int
    verdict: str | None
    sentence: str
    report: dict[str, Any]


def run_shadow_demo(*, as_json: bool) -> int:
    """Runs the demo. 0 when the shadow passed in normal light and failed in dim light, else 1 with what went wrong.

    Raises UnavailableError without its files.
    """
    files = demo_files()
    home = Path(tempfile.mkdtemp(prefix="deployctl-demo-"))
    stage = Stage(home, tell=note if as_json else say, as_json=as_json, service=SERVICE)
    shown: list[Shown] = []
    page = Path(tempfile.gettempdir()) / f"{home.name}.html"

    def play() -> None:
        copy_files(files, home, "phone-inspection", (MANIFEST,))
        _play(stage, shown, page)

    seen, problem = perform(stage, home, play)
    if as_json:
        scenes = [asdict(one) for one in shown]
        document = {"schema_version": 1, "ok": problem is None, "problem": problem, "scenes": scenes}
        show_document({**document, "page": str(page) if page.exists() else None, "traffic": seen})
    elif problem is None:
        for one in shown:
            say(f"\n{one.about}:\n  {one.sentence}")
        say(f"\nThe report as a page, to look at in a browser: {page}")
    return Exit.DONE if problem is None else Exit.BUG


def _play(stage: Stage, shown: list[Shown], page: Path) -> None:
    stage.tell(
        "Phones come down a line, and inspectors look for scratches. A model looks over their shoulders: it answers copies,\n"
        "its answers are used for nothing, and afterwards they are compared with what the inspectors said, label by label."
    )
    stage.start_service(MANIFEST)
    for scene in SCENES:
        stage.tell(f"\n── {scene.about}")
        stage.start_script(LINE, *PACE, *scene.light)
        code = stage.follow("shadow", MANIFEST)
        document = stage.ask("report", SERVICE)
        result = (document.get("decision") or {}).get("result")
        one = Shown(scene.about, code, result, str(document.get("sentence") or ""), document)
        shown.append(one)
        if code != scene.exit_code:
            raise DemoError(
                f"the shadow should end with exit {int(scene.exit_code)}, but did with {code}: {one.sentence}"
            )
        stage.stop_traffic()
        stage.follow("report", SERVICE)
    if stage.follow("report", SERVICE, "--html", str(page)) != Exit.DONE:
        raise DemoError("the report could not be written as a page")
