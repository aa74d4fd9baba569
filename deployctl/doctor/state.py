"""The state directory: whether it can be used, by us alone, on a disk that holds what is written to it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from deployctl.doctor.check import Check, examined, problem, warning
from deployctl.doctor.machine import uid_words
from deployctl.reserve import RESERVE_BYTES
from deployctl.statedir import MAX_SOCKET_PATH_BYTES, OTHERS_WRITE, ServiceHome
from deployctl.views.figures import size

OTHERS = stat.S_IRWXG | stat.S_IRWXO
LEAST_FREE = 16 << 20
"""Bytes: room for the journal's reserve, for a log and for a small model."""

NETWORK = {"9p", "afs", "ceph", "cifs", "davfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs", "sshfs"}  # fmt: skip
IN_MEMORY = {"tmpfs", "ramfs"}
LONGEST_NAME = "x" * 63


def state_checks(state: Path) -> Iterator[Check]:
    """The directory of all services."""
    yield from examined("state-directory", _directory, state)
    there = _nearest(state)
    yield from examined("file-system", _file_system, there)
    yield from examined("disk", _disk, there)
    yield from examined("sockets", _sockets, state)


def privacy(name: str, path: Path) -> Check:
    """Whether a directory is one of our own, for us alone. Raises OSError."""
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        return problem(name, f"{path}: a directory is needed here, and not a link or a file", "move it away")
    if status.st_uid != os.geteuid():
        told = f"{path}: belongs to {uid_words(status.st_uid)}, and you are uid {os.geteuid()}"
        if os.geteuid() == 0:
            return warning(name, told, "root may look; start and stop services as their owner")
        return problem(name, told, "run deployctl as its owner")
    if mode & OTHERS_WRITE:
        return problem(name, f"{path}: others can write here (mode {mode:04o})", f"chmod 700 {path}")
    if mode & OTHERS:
        return warning(name, f"{path}: others can look into it (mode {mode:04o})", f"chmod 700 {path}")
    missing = [
        word
        for word, bit in (("read", os.R_OK), ("written to", os.W_OK), ("entered", os.X_OK))
        if not os.access(path, bit)
    ]
    if missing:
        return problem(
            name, f"{path}: cannot be {' or '.join(missing)}{_read_only(path)}", _make_writable(path)
        )
    return Check(name, f"{path}, for its owner alone")


def _directory(state: Path) -> Iterator[Check]:
    try:
        state.lstat()
    except FileNotFoundError:
        yield _not_there(state)
        return
    target = Path(os.path.realpath(state, strict=True))  # Path.resolve has no OSError for a loop of links
    os.scandir(target).close()
    yield privacy("state-directory", target)


def _not_there(state: Path) -> Check:
    above = _nearest(state)
    if os.access(above, os.W_OK | os.X_OK):
        return Check("state-directory", f"{state} is not there yet; the first `up` makes it")
    return problem(
        "state-directory",
        f"{state} is not there, and cannot be made in {above}{_read_only(above)}",
        "set $DEPLOYCTL_STATE_DIR to a directory of your own on a disk that can be written",
    )


def _read_only(path: Path) -> str:
    return ": the file system is mounted read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else ""


def _make_writable(path: Path) -> str:
    if _read_only(path):
        return "mount it for writing; after errors of the disk look at `dmesg` first"
    return f"chmod 700 {path}"


def _nearest(path: Path) -> Path:
    """The path, or the first above it that is there."""
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110 - Path.exists raises for a loop of links
        path = path.parent
    return path


def _file_system(path: Path) -> Iterator[Check]:
    try:
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        yield Check("file-system", "this system does not say which one the state is on")
        return
    kind, mounted = file_system_of(Path(os.path.realpath(path)), table)
    found = f"{kind} at {mounted}"
    if kind.removeprefix("fuse.") in NETWORK:
        yield warning(
            "file-system",
            f"the state is on {found}, a network file system: locks and what was written down may not survive its server",
            "set $DEPLOYCTL_STATE_DIR to a directory on a disk of this machine",
        )
    elif kind in IN_MEMORY:
        yield warning(
            "file-system",
            f"the state is on {found}, in memory: it is gone after the next start of the machine",
            "set $DEPLOYCTL_STATE_DIR to a directory on a disk",
        )
    else:
        yield Check("file-system", found)


def file_system_of(path: Path, table: str) -> tuple[str, str]:
    """The kind of file system that a path is on, and where it is mounted, by /proc/self/mountinfo (proc(5)); `?` where it is not in there."""
    best = ("?", "?")
    for line in table.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if len(fields) < 5 or not kind:
            continue
        # Octal escapes stand for blanks and the like.
        mounted = fields[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
        if path.is_relative_to(mounted) and (best[1] == "?" or len(mounted) >= len(best[1])):
            best = (kind[0], mounted)  # of several at one place the last is what one sees
    return best


def _disk(path: Path) -> Iterator[Check]:
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free < LEAST_FREE:
        found = f"{size(free)} are free at {path}: a journal keeps back {size(RESERVE_BYTES)}, and then only rollbacks are written down"
        bad = problem if free < 2 * RESERVE_BYTES else warning
        yield bad("disk", found, "make room, or set $DEPLOYCTL_STATE_DIR to a larger disk")
    elif status.f_files and not status.f_favail:
        yield problem(
            "disk", f"no more files can be made at {path} (no inodes are left)", "remove files there"
        )
    else:
        yield Check("disk", f"{size(free)} are free at {path}")


def _sockets(state: Path) -> Iterator[Check]:
    """Whether the sockets of a service with the longest of names could be bound. Raises UnavailableError."""
    _ = ServiceHome(state, LONGEST_NAME).socket_dir
    yield Check("sockets", f"their paths fit into the {MAX_SOCKET_PATH_BYTES} bytes that a socket's may have")
