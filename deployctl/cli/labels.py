"""`deployctl labels add NAME FILE`: human labels from a file to a running service, joined there by request id."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from deployctl.cli.options import AsOutput, Output, person
from deployctl.cli.services import find_service
from deployctl.errors import DeployctlError, Exit, InvalidError, error_for
from deployctl.views.console import note, say, show_document
from deployctl.views.progress import Progress

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deployctl.labels import Found, Reading
    from deployctl.wire.admin import AdminClient

MAX_CHUNK = 5_000
MAX_CHUNK_BYTES = 900 * 1024
"""The service takes calls of up to 1 MiB."""


def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A service or its manifest.", show_default=False)
    ],
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="The label file; - for stdin.", show_default=False)
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="jsonl, csv, label-studio or label-studio-min.",
            show_default="told by the content",
        ),
    ] = None,
    id_key: Annotated[
        str, typer.Option("--id-key", metavar="KEY", help="Where a tool's file has the request id.")
    ] = "deployctl_id",
    from_name: Annotated[
        str | None,
        typer.Option(
            "--from-name", metavar="NAME", help="Which question gives the label.", show_default=False
        ),
    ] = None,
    output: AsOutput = Output.TEXT,
) -> int:
    """Send human labels from a file; sending them twice is harmless."""
    from deployctl.labels import Reading, Wanted  # noqa: PLC0415 - msgspec: --help does without

    service = find_service(name)
    with _opened(file) as stream, service.client() as client:
        reading = Reading(stream, "stdin" if file == "-" else file, Wanted(id_key, from_name), form)
        sending = _Sending(client, stream, reading)
        try:
            sending.run()
        except OSError as error:
            raise InvalidError(f"{file}: cannot be read: {error.strerror}") from error
    if output is Output.JSON:
        show_document({"schema_version": 1, "service": service.name, **sending.document()})
    else:
        for line in sending.lines():
            say(line)
    for place, reason in sending.refusals[:5]:
        note(
            f"deployctl: {file}: {reading.place(place)}: {reason}; the label was refused, the others were taken"
        )
    return Exit.INVALID if sending.counts["refused"] else Exit.DONE


def _opened(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise InvalidError(f"{file}: cannot be read: {error.strerror}") from error


@dataclass(slots=True)
class _Sending:
    """A file on its way to the service, chunk by chunk; `counts` are the service's."""

    client: AdminClient
    stream: BinaryIO
    reading: Reading
    counts: Counter[str] = field(default_factory=Counter)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    sent: int = 0

    def run(self) -> None:
        """Send it all. An error says how much was sent before it."""
        try:
            with Progress("sending labels") as progress:
                for chunk in _chunks(self.reading):
                    self._send(chunk)
                    done, total = self._place()
                    progress(done, total, f"{self.sent:,} sent")
        except DeployctlError as error:
            if not self.sent:
                raise
            message = f"{error} ({self.sent} labels were sent before that; sending them again is harmless)"
            raise error_for(error.exit_code, message) from error

    def _place(self) -> tuple[int, int | None]:
        """How much of the file is behind us, in bytes, and how much it is; of a pipe that is not known."""
        if not self.stream.seekable():
            return 0, None
        return self.stream.tell(), os.fstat(self.stream.fileno()).st_size

    def _send(self, chunk: list[Found]) -> None:
        from deployctl.labels import as_documents  # noqa: PLC0415 - as above

        # Sent again when the controller dies over it: a label that comes twice is counted as repeated and used once.
        answer = self.client.post("/v1/labels", {"labels": as_documents(chunk), "by": person()})
        refusals = answer.pop("refusals", [])
        self.refusals += [
            (chunk[one["index"]][1], str(one.get("reason"))) for one in refusals if "index" in one
        ]
        self.counts.update({name: count for name, count in answer.items() if isinstance(count, int)})
        self.sent += len(chunk)

    def document(self) -> dict[str, Any]:
        tally = self.reading.tally
        skipped = {reason: times for reason, times in sorted(tally.skipped.items()) if times}
        refusals = [{"place": self.reading.place(place), "reason": reason} for place, reason in self.refusals]
        return {
            "format": self.reading.format,
            "read": tally.read,
            "skipped": skipped,
            "sent": self.sent,
            "accepted": self.counts["accepted"],
            **self.counts,
            "refusals": refusals,
        }

    def lines(self) -> Iterator[str]:
        """A short table: what was read, why rows were skipped, what came of the labels."""
        tally = self.reading.tally
        yield f"{tally.read:>9}  rows read{f' ({self.reading.format})' if self.reading.format else ''}"
        for reason, times in tally.skipped.most_common():
            if times:
                yield f"{times:>9}  skipped: {reason.replace('_', ' ')}"
        yield f"{self.counts['accepted']:>9}  accepted"
        for name, times in self.counts.items():
            if name != "accepted" and times:
                yield f"{times:>9}  {WORDS.get(name, name.replace('_', ' '))}"


WORDS = {
    "joined": "joined with their answer",
    "unknown": "of an id that was not answered here, or not yet",
    "ambiguous": "of an id that was answered twice: used for nothing",
    "repeated": "of an answer that has its label already",
    "unknown_class": "of a class that the model does not have",
    "unanswered": "of a request without an answer",
    "unused": "that no metric of the running rollout asks for",
    "refused": "refused",
}
"""What the service says of labels, for people."""


def _chunks(reading: Reading) -> Iterator[list[Found]]:
    from deployctl.labels import size_of  # noqa: PLC0415 - as above

    chunk: list[Found] = []
    size = 0
    for found in reading:
        more = size_of(found)
        if chunk and (len(chunk) >= MAX_CHUNK or size + more > MAX_CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(found)
        size += more
    if chunk:
        yield chunk
