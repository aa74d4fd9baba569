"""A web server that plays whoever is behind a webhook: real HTTP on loopback, answers as the test says."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(ThreadingHTTPServer):
    """Answers each POST with what stands in `by_path` for its path, else with the next of `answers` (the last one again and again), and
    keeps what came. A status of None: no answer at all until the end of the test.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = [(200, "text/plain", b"")]
        self.by_path = {}
        self.packed = None
        """What the answer says of how it is packed."""
        self.came = []
        """(path, headers, body) of each call."""
        self.over = threading.Event()

    @property
    def url(self):
        return self.at("/hook?secret=swordfish")

    def at(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def say(self, path, status, words=b""):
        """What is answered there from now on."""
        self.by_path[path] = (status, "text/plain", words)

    def events(self, path=None):
        """The CloudEvents that came (there), in order."""
        return [json.loads(body) for at, _, body in [*self.came] if path in {None, at}]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        receiver = self.server
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver.came.append((self.path, dict(self.headers.items()), body))
        if self.path in receiver.by_path:
            status, kind, answer = receiver.by_path[self.path]
        else:
            status, kind, answer = (
                receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            )
        if status is None:
            receiver.over.wait(60)
            return
        self.send_response(status)
        self.send_header("content-type", kind)
        if receiver.packed:
            self.send_header("content-encoding", receiver.packed)
        if status == 302:
            self.send_header("location", receiver.url)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        receiver.shutdown()
        receiver.server_close()
        thread.join(10)
