"""A file server on loopback, over HTTP or HTTPS, that answers as it is told: with ranges and ETags, or without; late, short, wrong, elsewhere.

It is a stand-in for the servers of the world: a real one over real sockets, whose faults are chosen.
"""

import hashlib
import re
import ssl
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CHUNK = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """How one request is answered, where it is not answered well."""

    status: int | None = None
    headers: dict = field(default_factory=dict)
    drop_at: int | None = None
    """The connection ends after so many bytes of the body."""
    cut_at: int | None = None
    """The answer ends in good order after so many bytes, as behind a proxy whose own source broke off."""
    hold_at: int | None = None
    """Nothing comes any more after so many bytes, until the server is let go."""


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    path: str
    headers: dict

    @property
    def start(self):
        """The first byte that was asked for."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0


class FileServer:
    """`files` by path. The next requests are answered as `answers` say, those after them well."""

    def __init__(self, certificate=None, *, ranges=True, etags=True, lengths=True):
        self.files = {}
        self.answers = deque()
        self.of_path = {}
        """How the next request for a path is answered."""
        self.seen = []
        self.ranges, self.etags, self.lengths = ranges, etags, lengths
        self.let_go = threading.Event()
        self.held = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with suppress(ConnectionError, ssl.SSLError):
                    outer.answer(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):  # a client that does not like our certificate, or was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def port(self):
        return self._server.server_address[1]

    def url(self, path, host="localhost"):
        return f"{self.scheme}://{host}:{self.port}{path}"

    def close(self):
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

    # -- one request

    def answer(self, request):
        path = urlsplit(request.path).path
        seen = Seen(request.path, {key.lower(): value for key, value in request.headers.items()})
        self.seen.append(seen)
        told = self.answers.popleft() if self.answers else self.of_path.pop(path, Answer())
        if told.status is not None:
            self._head(request, told.status, {"Content-Length": "0", **told.headers})
            return
        reply = self.reply(seen)
        if reply is not None:
            status, kind, body = reply
            self._head(request, status, {"Content-Type": kind, "Content-Length": str(len(body))})
            request.wfile.write(body)
            return
        data = self.files.get(path)
        if data is None:
            self._head(request, 404, {"Content-Length": "0"})
            return
        self._send_file(request, seen, data, told)

    def reply(self, seen):
        """Something else than a file: status, type and body. For servers that are more than this."""

    def _send_file(self, request, seen, data, told):
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": tag} if self.etags else {}
        start, status = 0, 200
        same = seen.headers.get("if-range") in {None, tag}
        if self.ranges and same and seen.start:
            if seen.start >= len(data):
                self._head(request, 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
                return
            start, status = seen.start, 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.lengths:
            headers["Content-Length"] = str(len(data) - start)
        else:
            headers["Transfer-Encoding"] = "chunked"
        self._head(request, status, headers | told.headers)
        self._send_body(request, data[start:], told)

    def _send_body(self, request, body, told):
        ends = [at for at in (told.drop_at, told.cut_at, told.hold_at) if at is not None]
        end = min([len(body), *ends])
        for at in range(0, end, CHUNK):
            piece = body[at : min(end, at + CHUNK)]
            request.wfile.write(piece if self.lengths else b"%x\r\n%s\r\n" % (len(piece), piece))
        if told.hold_at is not None:
            request.wfile.flush()
            self.held.set()
            self.let_go.wait(60)
        whole = end == len(body) or told.cut_at is not None
        if whole and not self.lengths:
            request.wfile.write(b"0\r\n\r\n")
        request.close_connection = not whole

    def _head(self, request, status, headers):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
