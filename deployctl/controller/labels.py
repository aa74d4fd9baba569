"""Labels that no router posted: by the admin socket, or from files in a watched folder. Both enter the loop as a router's do.

The one rule: what is not a label a person could have given by now is refused here, with its reason, and reaches no record.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from deployctl.controller.loop import Controller
from deployctl.core.label import Label, flaw
from deployctl.errors import DeployctlError, InvalidError
from deployctl.labels import Folder, Wanted

MAX_POST = 5_000
"""Labels of one call; the body of an admin call is bounded, too."""

MAX_REFUSED = 100
"""Refused labels that an answer names one by one."""

WATCH_SECONDS = 1.0
MEMORY = "label-files.json"
"""In the service's home: how far each file of the watched folder has been read."""


class LabelIntake:
    """Both ways in, and what came of the watched folder."""

    def __init__(self, controller: Controller) -> None:
        self.now: Callable[[], datetime] = partial(datetime.now, UTC)
        self._controller = controller
        self._watched: dict[str, Any] | None = None
        self._folder: Folder | None = None
        self._refused = 0

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Labels of one call: how many were accepted, how the counts moved, and which were refused, by index.

        Raises InvalidError for a body that has no list of labels, UnavailableError when nothing can be written down.
        """
        try:
            rows = msgspec.convert(body.get("labels"), list[Label])
        except msgspec.ValidationError as error:
            raise InvalidError(f'labels are {{"labels": [{{"id": …, "label": …}}]}}: {error}') from error
        if len(rows) > MAX_POST:
            raise InvalidError(f"{len(rows)} labels in one call; at most {MAX_POST}: send them in parts")
        now = self.now()
        flaws = [flaw(row, now) for row in rows]
        taken = [row for row, why in zip(rows, flaws, strict=True) if why is None]
        moved = self._controller.on_labels(taken) if taken else {}
        refused = [{"index": at, "reason": why} for at, why in enumerate(flaws) if why is not None]
        return {"accepted": len(taken), **moved, "refused": len(refused), "refusals": refused[:MAX_REFUSED]}

    def describe(self) -> dict[str, Any] | None:
        """The watched folder for the status, None where none is watched."""
        if self._folder is None:
            return None
        counts = self._folder.counts
        return {"path": str(self._folder.path), "refused": self._refused, **msgspec.to_builtins(counts)}

    async def watch(self) -> None:
        """Look into the folder about once a second, as long as this process lives; reading is a thread's work."""
        while True:
            try:
                more = await self.look()
            except DeployctlError as error:
                _tell(str(error))
                more = False
            await asyncio.sleep(0.0 if more else WATCH_SECONDS)

    async def look(self) -> bool:
        """Take in what is new in the folder of the manifest in force; whether there is more."""
        controller = self._controller
        if controller.label_files != self._watched:
            self._watched = controller.label_files
            self._folder = _folder(self._watched, controller.home.path / MEMORY) if self._watched else None
        folder = self._folder
        if folder is None or controller.service is None or controller.broken is not None:
            return False
        labels = await asyncio.to_thread(folder.poll)
        now = self.now()
        reasons = Counter(why for label in labels if (why := flaw(label, now)) is not None)
        self._refused += reasons.total()
        for reason, times in reasons.most_common(1):
            _tell(f"{folder.path}: {reasons.total()} labels were refused, {times} because {reason}")
        if taken := [label for label in labels if not reasons or flaw(label, now) is None]:
            try:
                controller.on_labels(taken)
                # Before the place is remembered: in a power cut they would else be lost, and never read again.
                await controller.keep_labels()
            except DeployctlError:
                self._watched = None  # from the last place that was remembered, once more
                raise
        await asyncio.to_thread(folder.remember)
        for note in folder.notes():
            _tell(note)
        return folder.more


def _folder(watched: Mapping[str, Any], memory: Path) -> Folder:
    wanted = Wanted(watched["idKey"], watched["fromName"])
    return Folder(Path(watched["watch"]), memory, wanted, watched["format"])


def _tell(line: str) -> None:
    print(f"deployctl: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the service's log
