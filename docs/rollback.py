"""docs/rollback.svg anew, from a real run: a service is started, a model that is quick, sure and wrong is its canary, people's labels
roll it back. What the screen shows meanwhile is asked of the service twice a second and drawn by the views of deployctl itself.

python docs/rollback.py > docs/rollback.svg
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from deployctl.statedir import ServiceHome
from deployctl.views.console import Layout
from deployctl.views.events import event_words, words_of
from deployctl.views.status import status_lines
from deployctl.wire.admin import AdminClient

ROOT = Path(__file__).parents[1]
MANIFEST = "manifests/digits-v4.yaml"
WIDTH = 112
MOST_FRAMES = 8
SECONDS, LAST_SECONDS = 1.0, 7.0
EVERY = 0.5

Document = dict[str, Any]

FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def main() -> None:
    """Run it, draw it, write the picture to stdout."""
    with tempfile.TemporaryDirectory(prefix="dctl") as state, _service(Path(state)) as deployctl:
        frames = list(_screens(deployctl))
    rows = [[row for line in frame for row in line.wrap(Console(width=WIDTH), WIDTH)] for frame in frames]
    most = max(map(len, rows))
    sys.stdout.write(_film([_drawn(frame, number, most) for number, frame in enumerate(rows)]))


class _Command:
    """`deployctl` as a user types it, against a state directory of its own."""

    def __init__(self, state: Path, manifest: Path) -> None:
        self.manifest = manifest
        self._state = state
        self._environment = os.environ | {"DEPLOYCTL_STATE_DIR": str(state), "LOGNAME": "anna"}

    def __call__(self, *arguments: str) -> Document:
        line = [sys.executable, "-m", "deployctl", *arguments, "-o", "json"]
        done = subprocess.run(line, env=self._environment, capture_output=True, text=True, check=True)  # noqa: S603 - our own command
        answer: Document = json.loads(done.stdout)
        return answer

    def ask(self, question: str) -> Document:
        """Where `status` and `explain` ask, without a Python start for each frame."""
        with AdminClient(ServiceHome(self._state, "digits").admin_socket, "digits") as client:
            return client.get(question)


@contextmanager
def _service(state: Path) -> Iterator[_Command]:
    """A service with callers and labels, on a free port; ended whatever happens."""
    manifest = state / "digits-v4.yaml"
    text = (ROOT / MANIFEST).read_text("utf-8").replace("127.0.0.1:8080", "127.0.0.1:0")
    manifest.write_text(text.replace("../examples", str(ROOT / "examples")), "utf-8")
    deployctl = _Command(state, manifest)
    url = deployctl("up", str(manifest), "--detach")["url"]
    rates = ["--rate", "300", "--label-rate", "300", "--label-delay", "2,3"]
    script = [sys.executable, str(ROOT / "examples/digits/traffic.py"), "--url", url, *rates]
    traffic = subprocess.Popen(script, stdout=subprocess.DEVNULL)  # noqa: S603 - our own script
    try:
        time.sleep(1.0)  # the baseline has answers before the canary begins
        yield deployctl
    finally:
        traffic.terminate()
        traffic.wait()
        deployctl("down", "digits")


def _screens(deployctl: _Command) -> Iterator[list[Text]]:
    """What a terminal shows of `canary ramp`, every half second until it is over, and then its last words."""
    typed = Text(f"$ deployctl canary ramp {MANIFEST}", style="bold")
    deployctl("canary", "ramp", str(deployctl.manifest), "--detach")
    layout = Layout(WIDTH)
    while True:
        began = time.monotonic()
        status, events = deployctl.ask("/v1/status"), deployctl.ask("/v1/explain")["events"]
        told = [Text(event_words(event, WIDTH), style="dim") for event in events]
        if told:
            told[-1].style = ""
        screen = [typed, *status_lines(status, layout), Text(), *told]
        if status["phase"] == "rolled_back":
            last = Text(f"digits: {words_of(events[-1])}")
            yield [*screen, last, Text("$ echo $?", style="bold"), Text("3")]
            return
        yield screen
        time.sleep(max(0.0, EVERY - (time.monotonic() - began)))


def _drawn(rows: list[Text], number: int, most: int) -> str:
    """One screen as the inside of an SVG; every screen has as many lines."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for row in (*rows, *[Text()] * (most - len(rows))):
        console.print(row, no_wrap=True, crop=True)
    svg = console.export_svg(title="deployctl", unique_id=f"f{number}")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", FONTS)


def _film(frames: list[str]) -> str:
    """The screens one after the other, the last one for longer; it alone where nothing moves."""
    first, last = frames[:-1][-(MOST_FRAMES - 1) :], frames[-1]
    shown = [*first, last]
    whole = SECONDS * len(first) + LAST_SECONDS
    size = re.search(r'viewBox="([^"]+)"', last)
    assert size is not None
    rules = [".frame{visibility:hidden}", f".frame:nth-of-type({len(shown)}){{visibility:visible}}"]
    for number in range(len(shown)):
        begins = 100 * SECONDS * number / whole
        ends = 100.0 if number == len(first) else 100 * SECONDS * (number + 1) / whole
        before = "" if number == 0 else "0%{visibility:hidden}"
        after = "" if number == len(first) else f"{ends:.2f}%,100%{{visibility:hidden}}"
        rules.append(f"@keyframes k{number}{{{before}{begins:.2f}%{{visibility:visible}}{after}}}")
        rules.append(
            f"@media (prefers-reduced-motion: no-preference){{.frame:nth-of-type({number + 1})"
            f"{{animation:k{number} {whole:g}s step-end infinite}}}}"
        )
    inside = "\n".join(f'<g class="frame">{frame}</g>' for frame in shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size[1]}" role="img">\n'
        "<title>A canary is rolled back by people's labels</title>\n"
        f"<style>{''.join(rules)}</style>\n{inside}\n</svg>\n"
    )


if __name__ == "__main__":
    main()
