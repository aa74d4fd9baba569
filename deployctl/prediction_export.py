"""The predictions of a rollout as a file for notebooks: a line (JSONL) or row (Parquet) for each answer of each version.

The file appears under its name when it is whole, so nobody reads half of one, and an old one stays until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from deployctl.durable import publish
from deployctl.errors import InvalidError, UnavailableError
from deployctl.prediction_log import Heard, Log, Role, read_log, unheard
from deployctl.statedir import ServiceHome

PIECE = 20_000
"""Rows that are written together."""


class Vote(msgspec.Struct):
    """One label of the answer's request: `t` is when it came in (rollout seconds), `shown` whether the person saw the answer."""

    label: str | None
    annotator: str | None
    t: float
    shown: bool


class Prediction(msgspec.Struct):
    """One answer. `request` numbers the requests of the rollout (null: a copy whose request was lost), `key` is the hashed routing
    key, `t` the start in rollout seconds and `time` in UTC, `role` baseline, candidate or shadow (it answered a copy), `shown` whether the
    caller was given it, `votes` what people said of the request.
    """

    request: int | None
    id: str | None
    key: str
    t: float
    time: str
    version: str | None
    digest: str | None
    role: str
    status: int
    latency_ms: float
    prediction: str | None
    confidence: float | None
    null: bool
    shown: bool
    votes: list[Vote]


def export_predictions(home: ServiceHome, rollout_id: str | None, path: Path, heard: Heard = unheard) -> int:
    """Write the predictions of a rollout (default: the last) into this file; gives how many. Its records are read twice.

    Raises InvalidError for a name that is neither .jsonl nor .parquet, for an unknown rollout and where pyarrow is missing.
    """
    writer = WRITERS.get(path.suffix)
    if writer is None:
        raise InvalidError(f"{path}: what it should be is not known by its end; known: {', '.join(WRITERS)}")
    if path.suffix == ".parquet":
        _pyarrow()  # before anything is read
    log = read_log(home, rollout_id, lambda done, of: heard(done, 2 * of))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            count = writer(predictions_of(log, lambda done, of: heard(of + done, 2 * of)), file)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def predictions_of(log: Log, heard: Heard = unheard) -> Iterator[list[Prediction]]:
    """The predictions of a log, in pieces, as they came in."""
    votes = _votes(log)
    of_request = log.votes["request"][votes]
    piece: list[Prediction] = []
    for rows, ids in log.rows(heard):
        texts = [*log.texts, None]
        walls = log.wall(rows["t"]).tolist()
        firsts, ends = (np.searchsorted(of_request, rows["request"], side).tolist() for side in SIDES)
        for row, identity, wall, first, end in zip(rows, ids, walls, firsts, ends, strict=True):
            said = [_vote(log, log.votes[at]) for at in votes[first:end]] if row["request"] >= 0 else []
            piece.append(_prediction(log, texts, row, identity, wall, said))
        if len(piece) >= PIECE:
            yield piece
            piece = []
    if piece:
        yield piece


SIDES: tuple[Any, ...] = ("left", "right")


def _votes(log: Log) -> NDArray[np.int64]:
    """The votes in the order of their requests, and for each as they came."""
    return np.argsort(log.votes["request"], kind="stable")


def _vote(log: Log, vote: np.void) -> Vote:
    annotator = int(vote["annotator"])
    return Vote(
        label=_named(log.texts, int(vote["label"])),
        annotator=_named(log.annotators, annotator),
        t=float(vote["t"]),
        shown=bool(vote["shown"]),
    )


def _named(names: list[str], number: int) -> str | None:
    return names[number] if number >= 0 else None


def _prediction(
    log: Log, texts: list[str | None], row: np.void, identity: str, wall: float, votes: list[Vote]
) -> Prediction:
    arm = int(row["arm"])
    version = log.versions[arm] if 0 <= arm < len(log.versions) else None
    confidence = float(f"{row['confidence']:.9g}")  # as many digits as a 32-bit float has
    return Prediction(
        request=int(row["request"]) if row["request"] >= 0 else None,
        id=identity or None,
        key=f"#{int(row['key']).to_bytes(8, 'little').hex()}",
        t=float(row["t"]),
        time=datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        version=version.version if version else None,
        digest=version.digest if version else None,
        role=Role(int(row["role"])).name.lower(),
        status=int(row["status"]),
        latency_ms=float(f"{row['latency']:.9g}"),
        prediction=texts[row["prediction"]] if row["prediction"] >= 0 else None,
        confidence=confidence if np.isfinite(confidence) else None,
        null=bool(row["null"]),
        shown=bool(row["shown"]),
        votes=votes,
    )


def _write_jsonl(pieces: Iterator[list[Prediction]], file: BinaryIO) -> int:
    encoder, count = msgspec.json.Encoder(), 0
    for piece in pieces:
        file.write(encoder.encode_lines(piece))
        count += len(piece)
    return count


def _write_parquet(pieces: Iterator[list[Prediction]], file: BinaryIO) -> int:
    pa, parquet = _pyarrow()
    schema, count = _schema(pa), 0
    with parquet.ParquetWriter(file, schema) as writer:
        for piece in pieces:
            writer.write_table(pa.Table.from_pylist(msgspec.to_builtins(piece), schema))
            count += len(piece)
    return count


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415 - as above
    except ImportError as error:
        raise InvalidError(
            "Parquet needs pyarrow: `pip install 'deployctl[parquet]'`, or ask for a .jsonl file"
        ) from error
    return pa, parquet


def _schema(pa: Any) -> Any:
    """The columns of the file; a timestamp would be more than `time` promises, as downtime is not in it."""
    vote = pa.struct(
        [("label", pa.string()), ("annotator", pa.string()), ("t", pa.float64()), ("shown", pa.bool_())]
    )
    kinds = {
        "request": pa.int64(),
        "t": pa.float64(),
        "status": pa.int16(),
        "latency_ms": pa.float32(),
        "confidence": pa.float32(),
        "null": pa.bool_(),
        "shown": pa.bool_(),
        "votes": pa.list_(vote),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Prediction.__struct_fields__])


WRITERS: dict[str, Callable[[Iterator[list[Prediction]], BinaryIO], int]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
