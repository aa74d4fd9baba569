"""Where the state of every service lives, who may be in there, and the lock that says which service runs.

Everything here is 0700 and the caller's own: the sockets in it take orders. A service runs as long as its lock is held;
a pid in a file proves nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from deployctl.durable import make_directory, publish, sync_directory
from deployctl.errors import ConflictError, InvalidError, UnavailableError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
MAX_SOCKET_PATH_BYTES = 100
"""sun_path has 104 bytes on macOS and 108 on Linux."""

MAX_WORKER_SOCKET_BYTES = 24
"""The longest file name in `worker_sockets` that still fits."""

INPUT_KEY_BYTES = 32

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
LOCK_TRIES = 10
LOCK_RETRY_SECONDS = 0.02


def state_dir() -> Path:
    """$DEPLOYCTL_STATE_DIR, else the platform's state directory for deployctl; not made here.

    Raises UnavailableError when neither is known.
    """
    if chosen := os.environ.get("DEPLOYCTL_STATE_DIR"):
        return Path(chosen).absolute()
    xdg = os.environ.get("XDG_STATE_HOME", "")
    if sys.platform != "darwin" and xdg.startswith("/"):  # the specification ignores a relative one
        return Path(xdg, "deployctl")
    home = os.environ.get("HOME", "")
    if not home.startswith("/"):
        raise UnavailableError(
            "no state directory: neither $DEPLOYCTL_STATE_DIR nor $HOME is set; set one of them"
        )
    if sys.platform == "darwin":
        return Path(home, "Library", "Application Support", "deployctl")
    return Path(home, ".local", "state", "deployctl")


def model_in_cache(state: Path, digest: str) -> Path:
    """Where commands leave the model with this digest (sha256:…) for a service to copy. No service has a name with a dot."""
    return state / ".cache" / "models" / digest.replace(":", "/")


def make_model_cache(state: Path) -> Path:
    """The directory of the fetched models, made 0700 where it is missing. Raises UnavailableError."""
    root = state / ".cache" / "models"
    try:
        make_directory(state)
        _refuse_writable_by_others(state)
        for directory in (root.parent, root, root / "sha256", root / "incoming"):
            _make_private(directory)
        sync_directory(root)
    except OSError as error:
        raise _unavailable(root, "cannot be made", error) from error
    return root


def list_services(state: Path) -> list[str]:
    """The names of all services that have state here, running or not. One that cannot be looked into hides none of the others."""
    try:
        return sorted(
            entry.name for entry in state.iterdir() if NAME.fullmatch(entry.name) and _has_lock(entry)
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unavailable(state, "cannot be read", error) from error


def running_services(state: Path) -> list[str]:
    """The names of the services that run, as far as their locks can be read."""
    return [name for name in list_services(state) if _runs(ServiceHome(state, name))]


def _has_lock(entry: Path) -> bool:
    try:
        return (entry / "lock").is_file()
    except OSError:
        return True  # it is there, and whoever asks for it by name is told what is wrong


def _runs(home: ServiceHome) -> bool:
    try:
        return running_pid(home) is not None
    except UnavailableError:
        return False


def running_pid(home: ServiceHome) -> int | None:
    """The pid of the supervisor that holds the lock of a service, or None when nobody does."""
    for _ in _tries():
        try:
            fd = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(home.lock_file, "cannot be read", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if pid := _written_pid(fd):
                return pid
        except OSError as error:
            raise _unavailable(home.lock_file, "cannot be locked", error) from error
        else:
            return None
        finally:
            os.close(fd)
    raise UnavailableError(
        f"{home.lock_file}: held by a process that wrote no pid into it; try `fuser {home.lock_file}`"
    )


@dataclass(frozen=True, slots=True)
class ServiceHome:
    """The directory of one service and every path in it. Making the value touches nothing; `create` and `lock` do.

    Sockets lie in it, too, or in a private short directory when their paths would pass 100 bytes; that directory is
    found through the link `sockets`, so that a shell with another $TMPDIR finds the service all the same.
    """

    state: Path
    name: str

    def __post_init__(self) -> None:
        """A name becomes a path: nothing but a name may pass. Raises InvalidError."""
        if not NAME.fullmatch(self.name):
            raise InvalidError(
                f"{self.name!r} is no service name; a name has at most 63 of a-z, 0-9 and -, and starts with no -"
            )

    @property
    def path(self) -> Path:
        return self.state / self.name

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def records(self) -> Path:
        return self.path / "records"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def input_key(self) -> Path:
        """The key with which the bodies of requests are hashed; see `make_input_key`."""
        return self.path / "input.key"

    @property
    def webhooks(self) -> Path:
        """Up to which event each webhook was told."""
        return self.path / "webhooks.json"

    @property
    def tls(self) -> Path:
        """Certificate and key in one, as they were when they were last read; see `keep_private`."""
        return self.path / "tls.pem"

    @property
    def tokens(self) -> Path:
        """The tokens of callers, as they were when they were last read; see `keep_private`."""
        return self.path / "tokens"

    @property
    def admin_socket(self) -> Path:
        return self.socket_dir / "admin.sock"

    @property
    def orders_socket(self) -> Path:
        return self.socket_dir / "orders.sock"

    def heir_socket(self, place: int) -> Path:
        """Where the router at this place, from 0 on, passes its callers on to the next one when it ends."""
        return self.socket_dir / (f"heir-{place}.sock" if place else "heir.sock")

    @property
    def worker_sockets(self) -> Path:
        """A directory; names in it have at most MAX_WORKER_SOCKET_BYTES."""
        return self.socket_dir / "workers"

    @property
    def socket_dir(self) -> Path:
        if _fits(self.path):
            return self.path
        try:
            return self._socket_link.readlink()
        except OSError:
            return self._short_socket_dir()

    def create(self) -> None:
        """Make what is missing, all of it 0700.

        Raises UnavailableError when that is not possible, or when someone else owns or may write a directory.
        """
        try:
            make_directory(self.state)
            _refuse_writable_by_others(self.state)
            for directory in (self.path, self.records, self.models, self.log):
                _make_private(directory)
            sync_directory(self.path)
            sync_directory(self.state)
        except OSError as error:
            raise _unavailable(self.path, "cannot be made", error) from error

    def make_input_key(self) -> None:
        """32 random bytes for the owner only, made once in the life of a service. Raises UnavailableError."""
        if not self.input_key.exists():
            self.keep_private(self.input_key, secrets.token_bytes(INPUT_KEY_BYTES))

    def keep_private(self, path: Path, data: bytes, check: Callable[[Path], object] = lambda _: None) -> None:
        """A file in this directory for its owner only, durable when this returns, in the place of the one before.

        `check` gets the finished file before it has its name, and may raise what is wrong with it. Raises UnavailableError.
        """
        try:
            handle, name = tempfile.mkstemp(dir=self.path, prefix=f".{path.name}.")  # 0600
            try:
                with os.fdopen(handle, "wb") as temporary:
                    temporary.write(data)
                    temporary.flush()
                    os.fsync(temporary.fileno())
                check(Path(name))
                publish(Path(name), path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            raise _unavailable(path, "cannot be written", error) from error

    def forget_private(self, path: Path) -> None:
        """No such file any more, if there was one. Raises UnavailableError."""
        try:
            if path.exists():
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _unavailable(path, "cannot be removed", error) from error

    def lock(self) -> ServiceLock:
        """Become the one process that may run this service; makes the directories, the sockets' own included.

        Raises ConflictError when another process runs it, UnavailableError as `create` does.
        """
        self.create()
        try:
            fd = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unavailable(self.lock_file, "cannot be opened", error) from error
        lock = ServiceLock(self, fd)
        try:
            self._flock(fd)
            pid = f"{os.getpid()}\n".encode()
            os.pwrite(fd, pid, 0)
            os.ftruncate(fd, len(pid))
            self._make_socket_dir()
        except OSError as error:
            lock.release()
            raise _unavailable(self.path, "cannot be locked", error) from error
        except BaseException:
            lock.release()
            raise
        return lock

    def _flock(self, fd: int) -> None:
        for _ in _tries():  # `running_pid` of another process holds it for a moment
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return
        raise ConflictError(
            f"service {self.name} runs already (pid {_written_pid(fd) or 'unknown'}); "
            f"see `deployctl status {self.name}`, end it with `deployctl down {self.name}`"
        )

    @property
    def _socket_link(self) -> Path:
        return self.path / "sockets"

    def _short_socket_dir(self) -> Path:
        """Named after the user and the state's path, so that it is the same at every start."""
        identity = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        parents = [runtime] if runtime.startswith("/") else []
        for parent in [*parents, tempfile.gettempdir()]:
            directory = Path(parent, f"deployctl-{os.geteuid()}-{identity}")
            if Path(parent).is_dir() and _fits(directory):
                return directory
        raise UnavailableError(
            f"{self.path}: too long for Unix sockets, and so is {tempfile.gettempdir()}; set $XDG_RUNTIME_DIR to a short path"
        )

    def _make_socket_dir(self) -> None:
        """Only under the lock: moving the sockets of a running service would cut it off."""
        if not _fits(self.path):
            directory = self._short_socket_dir()
            _make_private(directory)
            self._socket_link.unlink(missing_ok=True)
            self._socket_link.symlink_to(directory)
        _make_private(self.worker_sockets)


@dataclass(slots=True)
class ServiceLock:
    """Held until `release`, or until the process ends, however it ends. Its file stays: removing it would race."""

    home: ServiceHome
    fd: int = field(repr=False)

    def release(self) -> None:
        """Let the next one in; twice is the same as once."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _fits(directory: Path) -> bool:
    longest = directory / "workers" / ("x" * MAX_WORKER_SOCKET_BYTES)
    return len(os.fsencode(longest)) <= MAX_SOCKET_PATH_BYTES


def _make_private(directory: Path) -> None:
    """A directory of our own, 0700. One that others own, could write, or that is a link is refused."""
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnavailableError(f"{directory}: a directory is needed here, and not a link; move it away")
    if status.st_uid != os.geteuid():
        raise UnavailableError(
            f"{directory}: belongs to uid {status.st_uid} and not to you ({os.geteuid()}); remove it or run as its owner"
        )
    _refuse_writable_by_others(directory)
    directory.chmod(0o700)


def _refuse_writable_by_others(directory: Path) -> None:
    if directory.stat().st_mode & OTHERS_WRITE:
        raise UnavailableError(f"{directory}: others can write here; try `chmod go-w {directory}`")


def _written_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _tries() -> Iterable[int]:
    """A few tries with a short wait between them: locks are probed by taking them for a moment."""
    for number in range(LOCK_TRIES):
        if number:
            time.sleep(LOCK_RETRY_SECONDS)
        yield number


def _unavailable(path: Path, what: str, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"{path}: {what}: {error.strerror or error}; check the disk and who owns the directory"
    )
