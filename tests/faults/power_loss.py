"""What a disk may hold after the power was cut: the traced file operations of a process, replayed up to any one of them.

The model (stricter than ext4 with its defaults, and than what POSIX promises it allows nothing more):

* An fsync that has returned keeps all that was in its file, or the names that were in its directory, when it was called.
* Of a file that was written since, the size is any that it has had since then, also in the middle of a write; each sector of 512
  bytes holds what it held at any of these moments, by itself: so a later write may be there without an earlier one, and a sector
  that never arrived has zeros (or what was there before).
* Truncations are like writes: they may be lost, and what was written after them may be there all the same.
* Names (made, linked, renamed, removed) reach the disk in the order of their directory, up to any of them; a new file whose data
  is safe may have no name, and a name that is safe may have no data. Directories do not wait for each other.

Left out: permissions and sockets (nothing is read of them after a cut), foreign bytes in sectors that never arrived, and sectors that are
torn themselves.
"""

import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from pathlib import Path

SECTOR = 512
CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,sendto,sendmsg,fsync,fdatasync,sync_file_range,ftruncate,truncate,fallocate,rename,"
    "renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,copy_file_range,sendfile"
)
ROOM = ".reserve"
"""Nobody ever reads what such a file holds, and its room is taken anew at each start: whatever a power cut leaves of it is as good."""

ACKNOWLEDGED = "acknowledged"
"""An operation that is none: something was said to the outside, so all that was written down until then is promised."""


@dataclass(frozen=True)
class Op:
    """One operation that ended well. `since` is the number of the first operation that ended after this one was begun."""

    kind: str
    path: Path = Path()
    data: bytes = b""
    at: int | None = None
    other: Path = Path()
    since: int = 0

    def __str__(self):
        return f"{self.kind} {self.path}{f' {self.other}' if self.kind in {'rename', 'link'} else ''}"


# ── from strace to operations ──────────────────────────────────────────────────────────────────────────────────────


def strace() -> str | None:
    return shutil.which("strace")


def traced(argv: list[str], log: Path) -> list[str]:
    """The command that runs this, and writes down what it and its children do to files and say on sockets."""
    how = ["-f", "--seccomp-bpf", "-qq", "-yy", "-xx", "-s", str(1 << 22), "-e", f"trace={CALLS}"]
    return [str(strace()), *how, "-e", "signal=none", "-o", str(log), *map(str, argv)]


_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*?)(?: <unfinished \.\.\.>|\) += (-?\w+).*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\w+).*$")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"^(?:-?\d+|AT_FDCWD)<(.*?)>(?=,|$)")


def operations(log: Path, root: Path, is_answer: Callable[[str, bytes], bool]) -> list[Op]:
    """The operations of a log within `root`; `is_answer(path, data)` says whether a write elsewhere tells the outside something."""
    ops: list[Op] = []
    open_calls: dict[str, tuple[str, int]] = {}
    with log.open() as lines:
        for line in lines:
            if resumed := _RESUMED.match(line):
                pid, call, rest, result = resumed.groups()
                arguments, since = open_calls.pop(pid)
                arguments += rest
            elif begun := _BEGUN.match(line):
                pid, call, arguments, result = begun.groups()
                since = len(ops)
                if result is None:
                    open_calls[pid] = arguments, since
                    continue
            else:
                continue
            if not result.startswith("-") and result != "?":
                ops += _within(root, _read_call(call, arguments, int(result, 0), since), is_answer)
                if [op.kind for op in ops[-2:]] == [ACKNOWLEDGED] * 2:
                    del ops[-1]
    return ops


def _read_call(call: str, arguments: str, result: int, since: int) -> Iterator[Op]:
    texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
    paths = [_joined(arguments, texts, number) for number in range(len(texts) if call in _OF_NAMES else 0)]
    of_fd = _FD.match(arguments)
    place = Path(_unhexed(of_fd.group(1))) if of_fd else Path()
    last = re.sub(r'"[^"]*"|<[^>]*>', "", arguments).split(",")[-1]
    if call in {"open", "openat", "creat"}:
        if "O_CREAT" in arguments or call == "creat":
            yield Op("create", paths[0], since=since)
        if "O_TRUNC" in arguments or call == "creat":
            yield Op("truncate", paths[0], at=0, since=since)
    elif call in {"write", "sendto", "writev", "sendmsg"}:
        yield Op("write", place, b"".join(texts)[:result], since=since)
    elif call == "pwrite64":
        yield Op("write", place, texts[0][:result], at=int(last, 0), since=since)
    elif call in {"fsync", "fdatasync"}:
        yield Op("sync", place, since=since)
    elif call == "ftruncate":
        yield Op("truncate", place, at=int(last, 0), since=since)
    elif call.startswith("symlink"):
        yield Op("symlink", paths[1], texts[0], since=since)
    elif call in _OF_NAMES:
        yield Op(_OF_NAMES[call], paths[0], other=paths[-1], since=since)
    else:  # a call that the model does not know: it must not be of our files
        yield Op(call, place, since=since)


_OF_NAMES = {"open": "", "openat": "", "creat": "", "symlink": "", "symlinkat": ""} | {
    **dict.fromkeys(("rename", "renameat", "renameat2"), "rename"),
    **dict.fromkeys(("link", "linkat"), "link"),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), "unlink"),
    **dict.fromkeys(("mkdir", "mkdirat"), "mkdir"),
}
"""Calls whose texts are paths, and the operation that they are."""


def _unhexed(text: str) -> str:
    """Paths in the notes about descriptors are in hexadecimal, what is said beside them is not."""
    return re.sub(
        r"(?:\\x[0-9a-f]{2})+", lambda part: bytes.fromhex(part[0].replace("\\x", "")).decode(), text
    )


def _joined(arguments: str, texts: list[bytes], number: int) -> Path:
    """A path argument; relative ones belong to the directory in front of them."""
    path = Path(texts[number].decode())
    if path.is_absolute():
        return path
    directories = re.findall(r"(?:AT_FDCWD|\d+)<(.*?)>", arguments)
    assert directories, arguments
    return Path(_unhexed(directories[min(number, len(directories) - 1)]), path)


def _within(root: Path, found: Iterator[Op], is_answer: Callable[[str, bytes], bool]) -> Iterator[Op]:
    for op in found:
        if op.path.suffix == ROOM:
            continue
        if op.path.is_relative_to(root):
            assert op.kind in _APPLY, f"the model knows no {op.kind} of {op.path}"
            yield op
        elif op.kind == "write" and is_answer(str(op.path), op.data):
            yield Op(ACKNOWLEDGED)


# ── the disk ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class File:
    """A file: what it held at its last fsync and after each change since then; the last is what programs see."""

    versions: list[bytes] = field(default_factory=lambda: [b""])
    numbers: list[int] = field(default_factory=lambda: [0])
    """The operation that led to each version."""

    @property
    def now(self) -> bytes:
        return self.versions[-1]

    def change(self, data: bytes, number: int) -> None:
        if data != self.now:
            self.versions.append(data)
            self.numbers.append(number)

    def sync(self, since: int) -> None:
        """All that had changed before operation `since` is safe."""
        while len(self.numbers) > 1 and self.numbers[1] < since:
            del self.versions[0], self.numbers[0]

    def after_a_cut(self, chance: random.Random, few: int) -> Iterator[bytes]:
        """What it may hold: what is likely and what is odd first, then `few` draws of everything that is possible."""
        if len(self.versions) == 1:
            yield self.versions[0]
            return
        yield from dict.fromkeys((self.versions[0], *self.versions[1:]))
        last, before = self.versions[-1], self.versions[-2]
        cuts = {len(before) + 1, (len(before) + len(last)) // 2, len(last) - 1}
        cuts |= {at for at in range(0, len(last), SECTOR) if at > len(before)}
        for cut in chance.sample(sorted(cuts), min(len(cuts), 4 + few)):
            if len(before) < cut < len(last):
                yield last[:cut]
        every = range(-(-max(map(len, self.versions)) // SECTOR))
        changed = [at for at in every if len({_sector(version, at) for version in self.versions}) > 1]
        if not changed:
            return
        yield self._mixed(len(self.versions) - 1, dict.fromkeys(changed, 0))
        for lost in chance.sample(changed, min(len(changed), 2 + few)):
            yield self._mixed(len(self.versions) - 1, {lost: 0})
        for _ in range(few):
            size = chance.randrange(1, len(self.versions))
            kept = {at: chance.randrange(len(self.versions)) for at in changed}
            yield self._mixed(size, kept)

    def _mixed(self, size: int, kept: dict[int, int]) -> bytes:
        """The size of one version, and for some sectors what another one held there."""
        length = len(self.versions[size])
        sectors = range(-(-length // SECTOR))
        return b"".join(_sector(self.versions[kept.get(at, size)], at) for at in sectors)[:length]


def _sector(data: bytes, number: int) -> bytes:
    return data[number * SECTOR : (number + 1) * SECTOR].ljust(SECTOR, b"\0")


@dataclass(eq=False)
class Link:
    """A symbolic link."""

    target: bytes


@dataclass(eq=False)
class Directory:
    """A directory: its names at its last fsync and after each change since then; the last is what programs see."""

    versions: list[dict[str, "Node"]] = field(default_factory=lambda: [{}])
    numbers: list[int] = field(default_factory=lambda: [0])

    @property
    def now(self) -> dict[str, "Node"]:
        return self.versions[-1]

    def change(self, number: int, **names: "Node | None") -> None:
        changed = {name: node for name, node in {**self.now, **names}.items() if node is not None}
        self.versions.append(changed)
        self.numbers.append(number)

    sync = File.sync


Node = File | Link | Directory
Tree = dict[str, "bytes | Link | Tree"]


class Disk:
    """Everything below one directory, with what is safe of it and what is not yet."""

    def __init__(self, root: Path, before: Path) -> None:
        """Paths are below `root`; what is in `before` now was there, and safe, when the trace began."""
        self.root = root
        self._number = 0
        self.top = _loaded(before)

    def apply(self, op: Op) -> None:
        self._number += 1
        if op.kind in _APPLY:
            _APPLY[op.kind](self, op)

    def find(self, path: Path) -> Node | None:
        node: Node | None = self.top
        for part in path.relative_to(self.root).parts:
            node = node.now.get(part) if isinstance(node, Directory) else None
        return node

    def seen(self, path: Path) -> bytes | None:
        """What a program reads in a file now."""
        node = self.find(path)
        return node.now if isinstance(node, File) else None

    def after_a_cut(self, chance: random.Random, few: int) -> Iterator[Tree]:
        """The states in which the disk may be if the power is cut now: all of a few, and draws of many."""
        directories = [node for node in _nodes(self.top) if isinstance(node, Directory)]
        unsafe = [directory for directory in directories if len(directory.versions) > 1]
        combinations = list(product(*(range(len(directory.versions)) for directory in unsafe)))
        if len(combinations) > 8 + few:
            ends = [combinations[0], combinations[-1]]
            combinations = [*ends, *chance.sample(combinations[1:-1], 6 + few)]
        for chosen in combinations:
            names = {id(directory): number for directory, number in zip(unsafe, chosen, strict=True)}
            files = list(dict.fromkeys(_files(self.top, names)))
            open_files = [file for file in files if len(file.versions) > 1]
            last = {id(file): file.now for file in files}
            first = {id(file): file.versions[0] for file in files}
            yield _tree(self.top, names, last)
            yield _tree(self.top, names, first)
            for file in open_files:
                for content in file.after_a_cut(chance, few):
                    yield _tree(self.top, names, {**last, id(file): content})
            for _ in range(few if len(open_files) > 1 else 0):
                drawn = {id(file): chance.choice([*file.after_a_cut(chance, 2)]) for file in open_files}
                yield _tree(self.top, names, {**last, **drawn})

    def _directory(self, path: Path) -> Directory:
        node = self.find(path)
        assert isinstance(node, Directory), path
        return node

    def _create(self, op: Op) -> None:
        if self.find(op.path) is None:
            self._directory(op.path.parent).change(self._number, **{op.path.name: File()})

    def _write(self, op: Op) -> None:
        file = self.find(op.path)
        if not isinstance(file, File):  # it was removed meanwhile, and nobody will ever read it
            return
        at = len(file.now) if op.at is None else op.at
        data = file.now.ljust(at, b"\0")
        file.change(data[:at] + op.data + data[at + len(op.data) :], self._number)

    def _truncate(self, op: Op) -> None:
        if isinstance(file := self.find(op.path), File):
            file.change(file.now[: op.at].ljust(op.at, b"\0"), self._number)

    def _sync(self, op: Op) -> None:
        if isinstance(node := self.find(op.path), File | Directory):
            node.sync(op.since + 1)

    def _rename(self, op: Op) -> None:
        assert op.path.parent == op.other.parent, f"the model knows no renaming to another directory: {op}"
        if (node := self.find(op.path)) is not None:
            names = {op.path.name: None, op.other.name: node}
            self._directory(op.path.parent).change(self._number, **names)

    def _link(self, op: Op) -> None:
        if (node := self.find(op.path)) is not None:
            self._directory(op.other.parent).change(self._number, **{op.other.name: node})

    def _symlink(self, op: Op) -> None:
        self._directory(op.path.parent).change(self._number, **{op.path.name: Link(op.data)})

    def _unlink(self, op: Op) -> None:
        if self.find(op.path) is not None:
            self._directory(op.path.parent).change(self._number, **{op.path.name: None})

    def _mkdir(self, op: Op) -> None:
        self._directory(op.path.parent).change(self._number, **{op.path.name: Directory()})


_APPLY = {
    "create": Disk._create,
    "write": Disk._write,
    "truncate": Disk._truncate,
    "sync": Disk._sync,
    "rename": Disk._rename,
    "link": Disk._link,
    "symlink": Disk._symlink,
    "unlink": Disk._unlink,
    "mkdir": Disk._mkdir,
}


def _loaded(path: Path) -> Node:
    if path.is_symlink():
        return Link(str(path.readlink()).encode())
    if path.is_dir():
        entries = {entry.name: _loaded(entry) for entry in path.iterdir() if not entry.is_socket()}
        return Directory(versions=[entries])
    return File(versions=[path.read_bytes()])


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node, Directory):
        for child in {id(child): child for version in node.versions for child in version.values()}.values():
            yield from _nodes(child)


def _files(node: Node, names: dict[int, int]) -> Iterator[File]:
    if isinstance(node, File):
        yield node
    elif isinstance(node, Directory):
        for child in node.versions[names.get(id(node), -1)].values():
            yield from _files(child, names)


def _tree(directory: Directory, names: dict[int, int], contents: dict[int, bytes]) -> Tree:
    tree: Tree = {}
    for name, node in directory.versions[names.get(id(directory), -1)].items():
        match node:
            case File():
                tree[name] = contents[id(node)]
            case Link():
                tree[name] = node
            case Directory():
                tree[name] = _tree(node, names, contents)
    return tree


def digest(tree: Tree) -> bytes:
    """The same for two states that no program can tell apart."""
    whole = blake2b(digest_size=16)
    for name, content in sorted(tree.items()):
        match content:
            case bytes():
                inner = b"f" + _of_content(content)
            case Link():
                inner = b"l" + content.target
            case _:
                inner = b"d" + digest(content)
        whole.update(name.encode() + b"\0" + inner)
    return whole.digest()


@lru_cache(maxsize=10_000)
def _of_content(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def materialise(tree: Tree, path: Path) -> None:
    """Make a directory hold just this, all of it private as it was."""
    path.mkdir(mode=0o700)
    for name, content in tree.items():
        match content:
            case bytes():
                (path / name).write_bytes(content)
            case Link():
                (path / name).symlink_to(content.target.decode())
            case _:
                materialise(content, path / name)
