"""A service that plays what a test wrote down: replies.json and events.jsonl in its home, orders go to orders.jsonl.

As in the real one, a parent holds the lock and the socket, and a child answers; a child that is killed is replaced.

A call that is answered with "held" waits until its reply is another one.

    python stand_in.py STATE NAME RELEASE
"""

import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
from pathlib import Path

from deployctl.errors import InvalidError
from deployctl.statedir import ServiceHome
from deployctl.wire.admin import AdminReply, AdminRequest, line, serve

RESTART_SECONDS = 0.3


def main() -> None:
    home = ServiceHome(Path(sys.argv[1]), sys.argv[2])
    with home.lock():
        home.admin_socket.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(home.admin_socket))
        sock.listen(64)
        child = 0

        def stop(*_: object) -> None:
            os.kill(child, signal.SIGKILL)
            home.admin_socket.unlink(missing_ok=True)
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        while True:
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                asyncio.run(answer(sock, home))
            os.waitpid(child, 0)
            signal.sigtimedwait([], RESTART_SECONDS)


async def answer(sock: socket.socket, home: ServiceHome) -> None:
    (home.path / "controller.pid").write_text(str(os.getpid()))

    async def handle(request: AdminRequest):
        if request.path.endswith("/events"):
            return events(home.path / "events.jsonl", int(request.query["after"]))
        with (home.path / "orders.jsonl").open("a") as orders:
            orders.write(json.dumps({"call": f"{request.method} {request.path}", **request.body}) + "\n")
        while (reply := replies(home).get(f"{request.method} {request.path}")) == "held":  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
        if reply is None:
            raise InvalidError(f"the test expects no {request.method} {request.path}")
        return AdminReply(reply, 409 if "error" in reply else 200)

    serve(sock, handle, sys.argv[3])
    await asyncio.Event().wait()


def replies(home: ServiceHome) -> dict[str, object]:
    return json.loads((home.path / "replies.json").read_text())


async def events(tape: Path, after: int):
    """Every event of the tape beyond `after`, also those that are appended while we wait."""
    read = 0
    while True:
        with tape.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH)
            documents = [json.loads(text) for text in opened]
        for document in documents[read:]:
            if document.get("seq", after + 1) > after:
                yield line(document)
            if document.get("finished"):
                return
        read = len(documents)
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    main()
