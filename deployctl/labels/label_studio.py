"""Label Studio's exports: JSON (tasks, one task, or one annotation with its task inside, as cloud storage has it) and JSON_MIN.

The rule: the request id is in the task's `data`, since Label Studio gives its own ids to the tasks that it imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec

from deployctl.core.label import Label, moment
from deployctl.labels.source import (
    MAX_DOCUMENT,
    BadFileError,
    Bytes,
    Found,
    NoLabelError,
    Tally,
    UnfinishedError,
    Wanted,
    label_of,
    text_of,
)

BOM = b"\xef\xbb\xbf"
NOT_QUESTIONS = frozenset(
    {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
)
"""What JSON_MIN writes of its own beside the task's data and the answers."""

USUAL_QUESTIONS = ("label", "choice", "choices", "class")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


_NULL = msgspec.Raw(b"null")


class _Person(msgspec.Struct):
    id: int | str | None = None
    email: str | None = None


class _Result(msgspec.Struct):
    """One answer to one question (`from_name`) of an annotation."""

    from_name: str | None = None
    type: str | None = None
    value: msgspec.Raw = _NULL


class _Choices(msgspec.Struct):
    choices: list[str] = []


class _Item(msgspec.Struct):
    """A task, or an annotation: cloud storage writes the latter alone, with its task inside. Everything else is not looked at."""

    data: dict[str, msgspec.Raw] | None = None
    annotations: list[_Item] | None = None
    drafts: list[msgspec.Raw] | None = None
    task: int | _Item | None = None
    result: list[_Result] | None = None
    completed_by: int | str | _Person | None = None
    was_cancelled: bool | None = None
    created_at: str | None = None
    updated_at: str | None = None
    last_action: str | None = None
    parent_prediction: msgspec.Raw = _NULL

    @property
    def annotator(self) -> str | None:
        """The user's id, which every form of the export has; the address only where it is all there is."""
        person = self.completed_by
        if isinstance(person, _Person):
            person = person.email if person.id is None else person.id
        return None if person is None else str(person)

    @property
    def shown(self) -> bool | None:
        """Whether the annotation was made from a prediction. One that was not may all the same have been made beside it."""
        made_from = bytes(self.parent_prediction) != b"null"
        return True if made_from or self.last_action == "prediction" else None


class _Document:
    """A file that is read as a whole, when it has ended."""

    reads_whole: ClassVar[bool] = True
    line = 1

    def __init__(self, wanted: Wanted, tally: Tally) -> None:
        self._wanted = wanted
        self._tally = tally

    def resume(self, _head: Bytes, _line: int) -> None:
        """There is nothing in the middle of a document to go on from."""

    def take(self, data: Bytes, *, ended: bool, room: int) -> tuple[list[Found], int]:  # noqa: ARG002 - a document has no parts
        if len(data) > MAX_DOCUMENT:
            raise BadFileError(
                f"more than {MAX_DOCUMENT // 2**20} MiB of JSON in one file: export in parts, or as CSV or JSONL, which may be long"
            )
        try:
            return (self.labels(data), len(data)) if ended else ([], 0)
        except UnicodeDecodeError as error:  # of a part: where it is in the whole is to be found yet
            raise BadFileError(_not_utf8(bytes(data))) from error

    def labels(self, data: Bytes) -> list[Found]:
        raise NotImplementedError


class LabelStudio(_Document):
    """Tasks with their annotations."""

    name: ClassVar[str] = "label-studio"

    def labels(self, data: Bytes) -> list[Found]:
        """Every label of the document, the latest of each annotator; what is none is counted."""
        document = _parsed(data, list[_Item] | _Item)
        items = document if isinstance(document, list) else [document]
        tasks = [item.task if isinstance(item.task, _Item) else item for item in items]
        ids = _ids(tasks, self._wanted.id_key)
        annotated = [
            (annotation, request, number)
            for number, (item, request) in enumerate(zip(items, ids, strict=True), start=1)
            for annotation in self._annotations(item)
        ]
        question = self._question([annotation for annotation, _, _ in annotated])
        found: list[Found] = []
        for annotation, request, number in annotated:
            try:
                found.append((_label(annotation, request, question), number))
            except NoLabelError as none:
                self._tally.skip(str(none))
        return _latest(found, self._tally)

    def _annotations(self, item: _Item) -> Iterator[_Item]:
        """The annotations to look at; the rest is counted."""
        tally = self._tally
        annotations = item.annotations or [] if item.result is None else [item]
        drafts = len(item.drafts or ())
        tally.read += len(annotations) + drafts
        tally.skip("draft", drafts)
        if not annotations and not drafts:
            tally.read += 1
            tally.skip("not_annotated")
        for annotation in annotations:
            if annotation.was_cancelled:
                tally.skip("cancelled")
            else:
                yield annotation

    def _question(self, annotations: list[_Item]) -> str | None:
        """Which `from_name` gives the label. Raises BadFileError where the file leaves that open."""
        results = [result for one in annotations for result in one.result or ()]
        asked = {result.from_name or "" for result in results if result.type == "choices"}
        wanted = self._wanted.from_name
        if wanted is None and len(asked) > 1:
            raise BadFileError(
                f"several questions: {_names(asked)}; say with --from-name which one gives the label"
            )
        if wanted is not None and results and wanted not in {result.from_name for result in results}:
            names = {result.from_name or "" for result in results}
            raise BadFileError(f"no question {wanted!r} in this file (questions: {_names(names)})")
        return wanted


def _label(annotation: _Item, request: str | None, question: str | None) -> Label:
    results = [result for result in annotation.result or () if question in {None, result.from_name}]
    if not results:
        raise NoLabelError("empty")
    choices = [result.value for result in results if result.type == "choices"]
    if not choices:
        raise NoLabelError("not_a_choice")
    picked = [choice for value in choices for choice in _parsed(bytes(value), _Choices).choices]
    if len(picked) > 1:
        raise NoLabelError("several_choices")
    at = annotation.updated_at or annotation.created_at
    return label_of(request, picked[0] if picked else None, annotation.annotator, at, shown=annotation.shown)


class LabelStudioMin(_Document):
    """JSON_MIN: one flat row for each annotation, the task's data and the answers by name."""

    name: ClassVar[str] = "label-studio-min"

    def labels(self, data: Bytes) -> list[Found]:
        """Every label of the document, the latest of each annotator; what is none is counted."""
        document = _parsed(data, list[dict[str, Any]] | dict[str, Any])
        rows = document if isinstance(document, list) else [document]
        key = self._wanted.id_key
        if rows and all(row.get(key) is None for row in rows):
            raise _wrong_project(key, {name for row in rows for name in row} - NOT_QUESTIONS)
        question = self._question(rows)
        found: list[Found] = []
        for number, row in enumerate(rows, start=1):
            self._tally.read += 1
            try:
                found.append((self._label(row, question), number))
            except NoLabelError as none:
                self._tally.skip(str(none))
            except ValueError as error:
                self._tally.bad(f"row {number}", f"id, label or annotator {error}")
        return _latest(found, self._tally)

    def _question(self, rows: list[dict[str, Any]]) -> str:
        """The key of the answer. A row does not say which of its keys are answers."""
        names = {name for row in rows for name in row} - NOT_QUESTIONS - {self._wanted.id_key}
        wanted = self._wanted.from_name
        known = [name for name in ((wanted,) if wanted else USUAL_QUESTIONS) if name in names]
        if len(known) == 1 or not rows:
            return known[0] if known else ""
        raise BadFileError(
            f"which key is the label? Say it with --from-name (keys of these rows: {_names(names)})"
        )

    def _label(self, row: dict[str, Any], question: str) -> Label:
        said = row.get(question)
        if isinstance(said, dict):  # how a question with several choices is written
            said = said.get("choices")
        if isinstance(said, list):
            if len(said) > 1:
                raise NoLabelError("several_choices")
            said = said[0] if said else None
        at = row.get("updated_at") or row.get("created_at")
        return label_of(
            text_of(row.get(self._wanted.id_key)),
            text_of(said),
            text_of(row.get("annotator")),
            at if isinstance(at, str) else None,
        )


class LabelStudioJson(_Document):
    """JSON of Label Studio, of whichever of its two forms."""

    name: ClassVar[str] = "label-studio"

    def labels(self, data: Bytes) -> list[Found]:
        """What the form that this is gives."""
        document = _parsed(data, list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw])
        rows = document if isinstance(document, list) else [document]
        kind: type[_Document] = LabelStudio
        if rows and not is_label_studio(rows[0]):
            kind = LabelStudioMin
        return kind(self._wanted, self._tally).labels(data)


def is_label_studio(row: Mapping[str, object]) -> bool:
    """Whether these are the keys of a task or an annotation, and not of one of our own rows or of JSON_MIN's."""
    return bool({"annotations", "data"} & row.keys()) or {"result", "task"} <= row.keys()


def _parsed(data: Bytes, kind: Any) -> Any:
    text = memoryview(data)[len(BOM) if data[: len(BOM)] == BOM else 0 :]
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise BadFileError(f"this is no Label Studio export: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnfinishedError(
            f"this is no whole JSON document: {error}; is it still being written? (One object per line: add --format jsonl)"
        ) from error


def _not_utf8(data: bytes) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"line {line}: this is not UTF-8; save the file as UTF-8"
    return "this is not UTF-8; save the file as UTF-8"


def _ids(tasks: list[_Item], key: str) -> list[str | None]:
    """The request id of each task. Raises BadFileError where none has any: the wrong project was exported."""
    raw = [(task.data or {}).get(key) for task in tasks]
    if tasks and all(one is None for one in raw):
        raise _wrong_project(key, {name for task in tasks for name in task.data or ()})
    ids: list[str | None] = []
    for number, one in enumerate(raw, start=1):
        try:
            ids.append(None if one is None else text_of(msgspec.json.decode(one)))
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise BadFileError(f"task {number}: data.{key} {error}") from error
    return ids


def _wrong_project(key: str, names: set[str]) -> BadFileError:
    return BadFileError(
        f"no task has {key!r} in its data (there: {_names(names) or 'nothing'}): this is another project, or its tasks were "
        f"imported without the request id; import them with data.{key}, or name the key with --id-key"
    )


def _names(names: set[str]) -> str:
    listed = ", ".join(sorted(names))
    return listed if len(listed) <= 200 else f"{listed[:200]}…"


def _latest(found: list[Found], tally: Tally) -> list[Found]:
    """One label for each request and annotator, the one that was updated last: a task that is imported twice is exported twice."""
    newest: dict[tuple[str, str], int] = {}
    for place, (label, _) in enumerate(found):
        if label.annotator is None:
            continue
        who = (label.id, label.annotator)
        if who not in newest or _when(found[newest[who]][0]) <= _when(label):
            newest[who] = place
    kept = [
        row
        for place, row in enumerate(found)
        if row[0].annotator is None or newest[row[0].id, row[0].annotator] == place
    ]
    tally.skip("superseded", len(found) - len(kept))
    return kept


def _when(label: Label) -> datetime:
    try:
        return moment(label.at or "")
    except ValueError:
        return _LONG_AGO
