"""`python -m deployctl.serving`: load one version, say once whether it is ready, then answer until told to stop.

Whoever started the worker decides over its life: SIGTERM drains it, SIGINT is ignored, and it dies with its parent.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from deployctl.errors import DeployctlError, Exit, InvalidError
from deployctl.serving.settings import Settings
from deployctl.wire.lifeline import die_with_parent
from deployctl.wire.priority import step_back, take_long_turns


def main() -> int:
    """One worker from start to end; the result is its exit code."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments = _arguments()
    try:
        settings = _settings(arguments.settings)
        priority = step_back() if settings.idle else "normal"
        if not settings.idle:
            take_long_turns()  # starting takes the processor for half a second, beside those who answer callers
        return _serve(settings, priority, arguments.socket, arguments.report_fd)
    except DeployctlError as error:
        message = " ".join(str(error).split())
        _report(arguments.report_fd, {"failed": message, "exit_code": int(error.exit_code)})
        sys.stderr.write(f"{message}\n")
        return error.exit_code


def _serve(settings: Settings, priority: str, path: Path, report_fd: int) -> int:
    # A quarter of a second of processor goes into these imports: an idle worker that restarts must have stepped back before.
    import uvloop  # noqa: PLC0415 - as above

    from deployctl.serving.batching import OFF, find_batching  # noqa: PLC0415 - as above
    from deployctl.serving.memory import limit_memory  # noqa: PLC0415 - as above
    from deployctl.serving.model import Model  # noqa: PLC0415 - as above
    from deployctl.serving.prediction import Reader  # noqa: PLC0415 - as above
    from deployctl.serving.watch import Watch  # noqa: PLC0415 - as above
    from deployctl.serving.worker import Server, Worker, listen  # noqa: PLC0415 - as above

    watch = Watch()
    model = Model(Path(settings.file), settings.digest, watch, memory=limit_memory(settings.memory))
    reader = Reader(settings.prediction, model.outputs, model.warm_up)
    batching = find_batching(model) if settings.batching else OFF
    worker = Worker(settings, model, reader, batching)
    listener = listen(path)
    # What is loaded now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    if not settings.idle:
        watch.weigh()

    async def serve() -> None:
        server = Server(worker, settings.max_batch_delay)
        await server.start(listener)
        ready = {
            "digest": settings.digest,
            "priority": priority,
            **model.report(),
            "batching": batching._asdict(),
        }
        _report(report_fd, {"ready": ready})
        await server.drained()

    uvloop.run(serve())
    return Exit.DONE


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deployctl.serving")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--settings", required=True)
    return parser.parse_args()


def _settings(text: str) -> Settings:
    try:
        return msgspec.json.decode(text, type=Settings)
    except msgspec.DecodeError as error:
        raise InvalidError(f"worker settings: {error}") from error


def _report(descriptor: int, report: dict[str, Any]) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
