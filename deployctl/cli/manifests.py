"""From a file name to a Manifest: the one place where the CLI reads files of the user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deployctl.errors import InvalidError

if TYPE_CHECKING:
    from deployctl.manifest.manifest import Manifest


def read_manifest(file: str) -> Manifest:
    """The manifest in this file; raises InvalidError when it cannot be read, or with every problem that it has."""
    from deployctl.core.metrics import METRICS  # noqa: PLC0415 - numpy and pydantic models: --help does without
    from deployctl.labels import LABEL_SOURCES  # noqa: PLC0415 - as above
    from deployctl.manifest.load import load  # noqa: PLC0415 - as above
    from deployctl.manifest.loader import MAX_BYTES  # noqa: PLC0415 - as above
    from deployctl.sources import SOURCE_FORMS  # noqa: PLC0415 - as above
    from deployctl.traffic import BACKENDS  # noqa: PLC0415 - as above

    path = Path(file).absolute()
    try:
        with path.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)  # one more than allowed, so that the loader sees it is too long
    except OSError as error:
        raise InvalidError(f"{file}: cannot be read: {error.strerror or error}") from error
    return load(
        text,
        file,
        engines=BACKENDS,
        metrics=METRICS,
        base=path.parent,
        label_sources=LABEL_SOURCES,
        model_sources=SOURCE_FORMS,
    )
