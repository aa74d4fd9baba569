"""The model store: bytes go in by digest, once, and a stored file never changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployctl.errors import IntegrityError, InvalidError, UnavailableError
from deployctl.store import Store

MODEL = b"the bytes of a model" * 1000
DIGEST = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
OTHER = f"sha256:{hashlib.sha256(b'other').hexdigest()}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "v1.onnx"
    path.write_bytes(MODEL)
    return path


def names(store: Store) -> list[str]:
    return sorted(entry.name for entry in store.root.iterdir()) if store.root.exists() else []


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_a_model_is_copied_under_its_digest(store: Store, source: Path, digest: str | None) -> None:
    assert store.add(source, digest) == (DIGEST, True)
    assert store.path(DIGEST).read_bytes() == MODEL
    assert names(store) == [DIGEST.replace(":", "-") + ".onnx"]
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert store.path(DIGEST).stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_a_model_that_is_there_is_used_again(store: Store, source: Path, digest: str | None) -> None:
    store.add(source)
    before = store.path(DIGEST).stat()
    assert store.add(source, digest) == (DIGEST, False)
    assert store.path(DIGEST).stat().st_ino == before.st_ino
    assert len(names(store)) == 1


def test_a_file_overwritten_on_disk_changes_nothing(store: Store, source: Path) -> None:
    store.add(source, DIGEST)
    source.write_bytes(b"other")
    assert store.add(source, DIGEST) == (DIGEST, False)
    source.unlink()
    assert store.add(source, DIGEST) == (DIGEST, False)
    assert store.path(DIGEST).read_bytes() == MODEL


def test_other_bytes_than_the_digest_are_refused_naming_both(store: Store, source: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        store.add(source, OTHER)
    assert DIGEST in str(caught.value)
    assert OTHER in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(store) == []


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_a_damaged_copy_is_replaced_from_a_good_source(
    store: Store, source: Path, digest: str | None
) -> None:
    store.add(source)
    store.path(DIGEST).chmod(0o600)
    store.path(DIGEST).write_bytes(MODEL[:-1])
    assert not store.holds(DIGEST)
    assert store.add(source, digest) == (DIGEST, True)
    assert store.holds(DIGEST)


def test_a_damaged_copy_and_a_wrong_source_are_an_error(store: Store, source: Path) -> None:
    store.add(source)
    store.path(DIGEST).chmod(0o600)
    store.path(DIGEST).write_bytes(b"damaged")
    source.write_bytes(b"other")
    with pytest.raises(IntegrityError):
        store.add(source, DIGEST)


def test_what_is_no_readable_file_is_the_users_mistake(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for source in ("missing.onnx", "folder", "fifo", "folder/x\0y", "v\n1.onnx"):
        with pytest.raises(InvalidError) as caught:
            store.add(tmp_path / source)
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidError, match="not a file"):
        store.add(Path("/dev/zero"))
    assert names(store) == []


def test_an_unreadable_file_is_the_users_mistake(store: Store, source: Path) -> None:
    source.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(InvalidError, match="Permission denied"):
            store.add(source)
    finally:
        if root:
            os.seteuid(0)


def test_a_model_has_a_largest_size(source: Path) -> None:
    with pytest.raises(InvalidError, match="too large"):
        Store(source.parent / "models", max_bytes=len(MODEL) - 1).add(source)
    assert Store(source.parent / "models", max_bytes=len(MODEL)).add(source) == (DIGEST, True)


def test_a_file_that_grows_while_it_is_read_is_bounded_too(store: Store) -> None:
    store.max_bytes = 100
    with pytest.raises(InvalidError, match="too large"):
        store.add(Path("/proc/self/status"))  # says that it has 0 bytes
    assert names(store) == []


def test_a_store_that_cannot_be_written_is_not_the_users_mistake(source: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the store should be")
    for place in ("occupied", "missing/models"):
        with pytest.raises(UnavailableError) as caught:
            Store(tmp_path / place).add(source)
        assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, source: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a tiny disk needs root")
    try:
        store = Store(disk / "models")
        with pytest.raises(UnavailableError, match="No space left"):
            store.add(source)
        assert names(store) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UnavailableError, match="Read-only"):
            store.add(source)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "md5:" + "0" * 64, "../" * 8]
)
def test_what_is_no_digest_never_becomes_a_path(store: Store, source: Path, text: str) -> None:
    with pytest.raises(InvalidError, match="no digest"):
        store.path(text)
    with pytest.raises(InvalidError, match="no digest"):
        store.add(source, text)


def test_models_that_nobody_needs_are_removed(store: Store, source: Path) -> None:
    store.remove_except([])
    store.add(source)
    source.write_bytes(b"other")
    store.add(source)
    (store.root / ".incoming-abandoned").write_bytes(b"half a mod")
    (store.root / "notes.txt").write_text("not a model")
    store.remove_except([OTHER, "sha256:" + "0" * 64])
    assert names(store) == ["notes.txt", OTHER.replace(":", "-") + ".onnx"]


ADDER = """
import sys
from pathlib import Path
from deployctl.store import Store
store = Store(Path(sys.argv[1]))
while True:
    store.add(Path(sys.argv[2]))
    store.remove_except([])
"""


def test_a_killed_copy_never_has_the_name_of_a_whole_one(store: Store, source: Path) -> None:
    source.write_bytes(os.urandom(4_000_000))
    deadline = time.monotonic() + 20
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", ADDER, str(store.root), str(source)]) as adder:
            while not names(store) and time.monotonic() < deadline:
                pass
            adder.kill()
        for entry in store.root.glob("*.onnx"):
            assert store.holds(entry.stem.replace("-", ":"))
        store.remove_except([])
        assert names(store) == []


REMOVER = """
import sys
from pathlib import Path
from deployctl.store import Store
print(flush=True)
Store(Path(sys.argv[1])).remove_except(sys.argv[2:])
"""


def test_a_killed_removal_has_removed_nothing_that_is_kept_and_the_next_one_ends_it(
    store: Store, source: Path
) -> None:
    store.add(source)
    for _ in range(20):
        for number in range(1000):
            (store.root / f"sha256-{number:064}.onnx").touch()
        before = store.root.stat().st_mtime_ns
        with subprocess.Popen(
            [sys.executable, "-c", REMOVER, str(store.root), DIGEST], stdout=subprocess.PIPE
        ) as remover:
            assert remover.stdout is not None
            remover.stdout.readline()
            while store.root.stat().st_mtime_ns == before:
                assert remover.poll() is None
            remover.kill()
        left = names(store)
        assert store.holds(DIGEST)
        store.remove_except([DIGEST])
        assert names(store) == [store.path(DIGEST).name]
        if len(left) > 1:
            return
    pytest.fail("it was never killed in the middle")
