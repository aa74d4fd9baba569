"""Outcomes and labels as the controller took them in, written before they count; pairs of answers; and the join of labels."""

from deployctl.records.arrivals import Arrivals, Arrived, LeftOut, Pairs
from deployctl.records.entries import LABELS, Began, Clock, Entry, Gone, Intake, labels_alone
from deployctl.records.file import (
    MAX_BYTES,
    Records,
    check,
    entries_of,
    keep_aside,
    read,
    segments_of,
    size_of,
)
from deployctl.records.join import MAX_EARLY_LABELS, MAX_JOINABLE, LabelCounts, LabelJoin
from deployctl.records.rows import ROW, SEEN, Rows, rows_of, text_hash, without_texts

__all__ = [
    "LABELS",
    "MAX_BYTES",
    "MAX_EARLY_LABELS",
    "MAX_JOINABLE",
    "ROW",
    "SEEN",
    "Arrivals",
    "Arrived",
    "Began",
    "Clock",
    "Entry",
    "Gone",
    "Intake",
    "LabelCounts",
    "LabelJoin",
    "LeftOut",
    "Pairs",
    "Records",
    "Rows",
    "check",
    "entries_of",
    "keep_aside",
    "labels_alone",
    "read",
    "rows_of",
    "segments_of",
    "size_of",
    "text_hash",
    "without_texts",
]
