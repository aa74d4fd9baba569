"""An approval desk on one page of Python: rollouts ask here, a person says yes, and whatever is told is printed.

    python examples/webhooks/desk.py --port 8099
    curl --data 'signed off by kim' http://127.0.0.1:8099/yes/digits-3-0c5a41/2/sign-off

A question (POST /ask) is answered 403 until somebody has said yes to it, by the id that is printed with it: rollout, step, name. What is told (POST /tell) is
printed. It listens on loopback only and asks nobody for a password: put what you trust people by in front of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 1 << 20


class Desk(ThreadingHTTPServer):
    """`said` is who said yes to which question; it stays said, as an answer may be lost and is asked for again."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.said: dict[str, str] = {}
        self.asked: set[str] = set()

    def ask(self, event: dict[str, str]) -> tuple[int, str]:
        """The answer to one question; it is shown when it is new."""
        if (words := self.said.get(event["id"])) is not None:
            return 200, words
        if event["id"] not in self.asked:
            self.asked.add(event["id"])
            print(
                f"{event['text']}\n  yes: curl --data WHO http://127.0.0.1:{self.server_port}/yes/{event['id']}",
                flush=True,
            )
        return 403, "nobody has said yes yet"

    def tell(self, event: dict[str, str]) -> tuple[int, str]:
        print(f"{event['time']}  {event['text']}", flush=True)
        return 204, ""

    def yes(self, question: str, words: str) -> tuple[int, str]:
        if question not in self.asked:
            return 404, f"nobody has asked {question}\n"
        self.said[question] = words or "yes"
        return 200, f"noted for {question}\n"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Desk

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > MAX_BODY:
            self._answer(413, "too long\n")
            return
        body = self.rfile.read(length).decode("utf-8", "replace")
        _, verb, *rest = self.path.split("/", 2)
        try:
            if verb == "yes" and rest:
                self._answer(*self.server.yes(rest[0], body.strip()))
            elif verb in {"ask", "tell"}:
                event = json.loads(body)
                self._answer(*(self.server.ask if verb == "ask" else self.server.tell)(event))
            else:
                self._answer(404, "ask, tell or yes/ROLLOUT\n")
        except (ValueError, KeyError, TypeError):
            self._answer(400, "no event of deployctl\n")

    def _answer(self, status: int, words: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "text/plain; charset=utf-8")
        if status != 204:
            self.send_header("content-length", str(len(words.encode())))
        self.end_headers()
        self.wfile.write(words.encode())

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Nothing: what is worth a line is printed above."""


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--port", type=int, default=8099)
    desk = Desk(parser.parse_args().port)
    print(f"the desk is at http://127.0.0.1:{desk.server_port}", flush=True)
    try:
        desk.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
