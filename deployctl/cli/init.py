"""`deployctl init [DIR]`: a commented manifest to start from, and the schema that editors check it with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from deployctl.errors import Exit, InvalidError, UnavailableError
from deployctl.views.console import note, say, show_document

MANIFEST = "rollout.yaml"
SCHEMA = "rollout.schema.json"


def run_init(directory: str, as_json: bool) -> int:
    """Write both files and print their names. Nothing is ever overwritten: that is InvalidError."""
    from deployctl.manifest.schema import published  # noqa: PLC0415 - pydantic models cost 0.1 s

    target = Path(directory)
    manifest, schema = target / MANIFEST, target / SCHEMA
    if manifest.exists() or manifest.is_symlink():
        raise InvalidError(f"{manifest}: exists already and is not overwritten; name another directory")
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not (schema.is_file() and schema.read_bytes() == published().encode()):
            _write_new(schema, published())
        _write_new(manifest, files("deployctl.manifest").joinpath("template.yaml").read_text("utf-8"))
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidError(f"{error.filename}: {error.strerror}; name another directory") from error
    except OSError as error:
        raise UnavailableError(f"{error.filename or target}: cannot be written: {error.strerror}") from error
    if as_json:
        show_document({"schema_version": 1, "written": [str(manifest), str(schema)]})
    else:
        say(f"{manifest}\n{schema}")
        note("next: put your model's names and files in, then `deployctl lint` it")
    return Exit.DONE


def _write_new(path: Path, text: str) -> None:
    """All of the file or none of it: a half-written one would be in the way of the next try."""
    with path.open("x", encoding="utf-8") as opened:
        try:
            opened.write(text)
            opened.flush()
        except OSError:
            path.unlink()
            raise
