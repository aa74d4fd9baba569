"""From one router to its successor: connections that have nothing under way, passed on as descriptors.

The kernel keeps what a caller sends meanwhile, so nobody notices. Whoever ends looks on a path that is always the same; its
successor has taken that path over. The one rule: a connection is passed on between two requests, never within one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_BYTE = b"c"  # a descriptor needs company on its way
_AT_ONCE = 64
_BACKLOG = 8
_NOT_NOW = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS}  # too many descriptors are on their way


class Heir:
    """The end that takes connections over. It has the path from the beginning; what is given waits until `adopt`."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the path cannot be had."""
        self._loop = asyncio.get_running_loop()
        self._listener = _listen(path)
        self._givers: set[socket.socket] = set()
        self._adopted: Callable[[socket.socket], None]

    def adopt(self, adopted: Callable[[socket.socket], None]) -> None:
        """From now on each connection comes to this function, until `close`."""
        self._adopted = adopted
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Takes what is on its way, and nothing more."""
        self._loop.remove_reader(self._listener.fileno())
        self._accept()
        self._listener.close()
        for giver in tuple(self._givers):
            self._take(giver)
            self._part(giver)

    def _accept(self) -> None:
        with suppress(OSError):  # nobody is left, or whoever it was is gone again
            while True:
                giver, _ = self._listener.accept()
                giver.setblocking(False)
                self._givers.add(giver)
                self._loop.add_reader(giver.fileno(), self._take, giver)

    def _take(self, giver: socket.socket) -> None:
        """Everything that has come from one giver; its end is the end of it."""
        while True:
            try:
                said, descriptors, _, _ = socket.recv_fds(giver, _AT_ONCE, _AT_ONCE)
            except BlockingIOError:
                return
            except OSError:
                said, descriptors = b"", []
            for descriptor in descriptors:
                self._adopted(socket.socket(fileno=descriptor))
            if not said:
                self._part(giver)
                return

    def _part(self, giver: socket.socket) -> None:
        if giver in self._givers:
            self._givers.discard(giver)
            self._loop.remove_reader(giver.fileno())
            giver.close()


class Successor:
    """The router that comes after this one, where there is one: `find`."""

    def __init__(self, link: socket.socket) -> None:
        self.gone = False
        self._link = link

    @classmethod
    def find(cls, path: Path) -> Successor | None:
        """Whoever listens there now; None at the end of a service. Our own `Heir` must be closed by then."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.setblocking(False)
            link.connect(str(path))
        except OSError:
            link.close()
            return None
        return cls(link)

    def take(self, descriptor: int) -> bool:
        """Whether the connection is the successor's now; if not it may be offered again, unless the successor is `gone`."""
        try:
            socket.send_fds(self._link, [_BYTE], [descriptor])
        except OSError as error:
            self.gone = error.errno not in _NOT_NOW
            return False
        return True

    def close(self) -> None:
        """What was taken stays taken."""
        self._link.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener
