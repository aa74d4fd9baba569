"""A manifest read in a process of its own: the reader's libraries weigh 12 MB that a controller would keep for good, and what it
reads is somebody else's text. The one rule: the result is a Manifest or an InvalidError, whatever the text was.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from deployctl.errors import Exit, InvalidError, UnavailableError
from deployctl.manifest.manifest import Manifest
from deployctl.manifest.model_uri import Form

READ_SECONDS = 30.0
"""Far more than the largest manifest takes on a busy machine."""


async def read_apart(
    text: bytes,
    source: Path,
    *,
    engines: Collection[str],
    metrics: Collection[str],
    label_sources: Collection[str],
    model_sources: Mapping[str, Form],
) -> Manifest:
    """As `load.load`, in a child process. Raises InvalidError with every problem, UnavailableError when no child can run."""
    names = {"engines": list(engines), "metrics": list(metrics), "label_sources": list(label_sources)}
    known = json.dumps({"source": str(source), **names, "model_sources": dict(model_sources)})
    child: asyncio.subprocess.Process | None = None
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, known),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(READ_SECONDS):
            answer, _ = await child.communicate(text)
    except OSError as error:  # TimeoutError is one
        raise UnavailableError(
            f"{source}: no process could read it: {error or 'it took too long'}"
        ) from error
    finally:
        if child is not None and child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
    if child.returncode == Exit.INVALID:
        raise InvalidError(answer.decode("utf-8", "replace"))
    if child.returncode != Exit.DONE:
        raise UnavailableError(f"{source}: the process that read it ended with {child.returncode}")
    manifest = pickle.loads(answer)  # noqa: S301 - from our own child, over our own pipe
    assert isinstance(manifest, Manifest)
    return manifest


def main() -> int:
    """The child: text on stdin, the Manifest or its problems on stdout."""
    from deployctl.manifest.load import load  # noqa: PLC0415 - only the child pays for it

    known = json.loads(sys.argv[1])
    source = Path(known["source"])
    try:
        manifest = load(
            sys.stdin.buffer.read(),
            str(source),
            engines=known["engines"],
            metrics=known["metrics"],
            label_sources=known["label_sources"],
            model_sources={scheme: Form(*form) for scheme, form in known["model_sources"].items()},
            base=source.parent,
        )
    except InvalidError as error:
        sys.stdout.write(str(error))
        return Exit.INVALID
    sys.stdout.buffer.write(pickle.dumps(manifest))
    return Exit.DONE


if __name__ == "__main__":
    signal.signal(
        signal.SIGPIPE, signal.SIG_DFL
    )  # nobody waits for the answer of a controller that was killed
    sys.exit(main())
