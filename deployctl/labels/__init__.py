"""Human labels from files: LABEL_SOURCES read them (JSONL, CSV, Label Studio), Folder watches a directory of them."""

from deployctl.labels.folder import Folder
from deployctl.labels.reading import LABEL_SOURCES, Reading, as_documents, size_of
from deployctl.labels.source import BadFileError, Found, Tally, Wanted

__all__ = [
    "LABEL_SOURCES",
    "BadFileError",
    "Folder",
    "Found",
    "Reading",
    "Tally",
    "Wanted",
    "as_documents",
    "size_of",
]
