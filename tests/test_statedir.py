"""Where state lives: private directories, short socket paths, and a lock that only a living process holds."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deployctl.errors import ConflictError, Exit, InvalidError, UnavailableError
from deployctl.statedir import (
    MAX_WORKER_SOCKET_BYTES,
    ServiceHome,
    list_services,
    running_pid,
    running_services,
    state_dir,
)

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to someone else")


@pytest.fixture
def home(tmp_path: Path) -> ServiceHome:
    return ServiceHome(tmp_path / "state", "digits")


@pytest.fixture
def far_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceHome:
    """A home whose sockets must live elsewhere, here in a runtime directory of the test."""
    runtime = Path("/tmp", f"dt-{os.getpid()}-{os.urandom(4).hex()}")  # short: tmp_path may be long already
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield ServiceHome(tmp_path / ("long" * 20) / "state", "digits")
    subprocess.run(["rm", "-rf", str(runtime)], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DEPLOYCTL_STATE_DIR": "/srv/d", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/srv/d"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/deployctl"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/deployctl"),
        ({"DEPLOYCTL_STATE_DIR": "", "XDG_STATE_HOME": "", "HOME": "/h"}, "/h/.local/state/deployctl"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has its own place, tested below")
def test_the_state_directory_is_the_users_choice_or_the_platforms(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("DEPLOYCTL_STATE_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert state_dir() == Path(expected)


def test_a_mac_keeps_it_in_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPLOYCTL_STATE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/Users/ada")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert state_dir() == Path("/Users/ada/Library/Application Support/deployctl")


def test_a_relative_choice_does_not_depend_on_where_one_goes_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEPLOYCTL_STATE_DIR", "here")
    assert state_dir() == tmp_path / "here"


def test_without_a_home_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEPLOYCTL_STATE_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UnavailableError, match="DEPLOYCTL_STATE_DIR"):
        state_dir()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "-a", "A", "a_b", "a\n", "a" * 64, "é", "a\0"]
)
def test_what_is_no_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="no service name") as caught:
        ServiceHome(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_everything_that_is_made_is_private_and_twice_is_the_same_as_once(home: ServiceHome) -> None:
    before = os.umask(0)
    try:
        home.create()
        home.create()
        with home.lock():
            pass
    finally:
        os.umask(before)
    for directory in (home.state, home.path, home.records, home.models, home.log, home.worker_sockets):
        assert mode(directory) == 0o700
    assert mode(home.lock_file) == 0o600
    assert home.journal.parent == home.path
    assert not home.journal.exists()


def test_a_home_that_others_could_read_is_closed(home: ServiceHome) -> None:
    home.path.mkdir(parents=True, mode=0o755)
    home.create()
    assert mode(home.path) == 0o700


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o1777])
@pytest.mark.parametrize("which", ["state", "path", "models"])
def test_a_directory_that_others_can_write_is_refused(home: ServiceHome, which: str, bits: int) -> None:
    home.create()
    directory = getattr(home, which)
    directory.chmod(bits)
    with pytest.raises(UnavailableError, match="chmod go-w") as caught:
        home.lock()
    assert caught.value.exit_code is Exit.UNAVAILABLE
    assert running_pid(home) is None


@needs_root
def test_a_directory_of_someone_else_is_refused(home: ServiceHome) -> None:
    home.create()
    os.chown(home.path, NOBODY, NOBODY)
    with pytest.raises(UnavailableError, match=f"uid {NOBODY}"):
        home.create()


def test_a_link_in_place_of_a_directory_is_refused(home: ServiceHome, tmp_path: Path) -> None:
    home.create()
    home.models.rmdir()
    home.models.symlink_to(tmp_path)
    with pytest.raises(UnavailableError, match="not a link"):
        home.create()


def test_a_file_in_the_way_is_one_line_and_exit_8(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(UnavailableError) as caught:
        ServiceHome(tmp_path / "state", "digits").lock()
    assert "\n" not in str(caught.value)


@needs_root
def test_a_read_only_state_directory_is_exit_8(home: ServiceHome) -> None:
    home.state.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,mode=700", "tmpfs", str(home.state)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UnavailableError, match="Read-only file system"):
            home.lock()
    finally:
        subprocess.run(["umount", str(home.state)], check=True)


def test_a_directory_without_permission_is_exit_8(home: ServiceHome) -> None:
    home.state.mkdir()
    home.state.chmod(0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(UnavailableError, match="Permission denied"):
            home.lock()
    finally:
        if root:
            os.seteuid(0)


def test_one_process_runs_a_service_and_its_pid_is_known(home: ServiceHome) -> None:
    assert running_pid(home) is None
    with home.lock():
        assert running_pid(home) == os.getpid()
        with pytest.raises(ConflictError, match=f"runs already .pid {os.getpid()}."):
            home.lock()
    assert running_pid(home) is None
    assert home.lock_file.exists()
    with home.lock() as again:
        again.release()
        again.release()
        assert running_pid(home) is None


def test_a_stale_pid_proves_nothing(home: ServiceHome) -> None:
    home.create()
    home.lock_file.write_text(f"{os.getpid()}\n")
    assert running_pid(home) is None
    with home.lock():
        pass


HOLDER = """
import sys, time
from pathlib import Path
from deployctl.statedir import ServiceHome
lock = ServiceHome(Path(sys.argv[1]), sys.argv[2]).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_holds_nothing(home: ServiceHome) -> None:
    command = [sys.executable, "-c", HOLDER, str(home.state), home.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert running_pid(home) == holder.pid
        with pytest.raises(ConflictError, match=str(holder.pid)):
            home.lock()
        holder.kill()
        holder.wait()
        assert running_pid(home) is None


def test_a_child_does_not_inherit_the_lock(home: ServiceHome) -> None:
    with home.lock() as lock:
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        lock.release()
        assert running_pid(home) is None
        child.kill()
        child.wait()


def test_looking_at_the_lock_does_not_keep_a_service_from_starting(home: ServiceHome) -> None:
    import threading

    home.create()
    home.lock_file.touch()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            running_pid(home)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            home.lock().release()
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_services_are_listed_with_those_that_run(home: ServiceHome) -> None:
    assert list_services(home.state) == []
    other = ServiceHome(home.state, "other")
    other.lock().release()
    (home.state / "Not-a-service").mkdir()
    (home.state / "empty").mkdir()
    with home.lock():
        assert list_services(home.state) == ["digits", "other"]
        assert running_services(home.state) == ["digits"]


def test_sockets_lie_in_the_home_where_their_paths_are_short(home: ServiceHome) -> None:
    short = ServiceHome(Path("/tmp/state"), "digits")
    assert short.admin_socket == Path("/tmp/state/digits/admin.sock")
    assert short.orders_socket == Path("/tmp/state/digits/orders.sock")
    assert short.worker_sockets == Path("/tmp/state/digits/workers")


def test_the_longest_names_still_fit_a_socket(far_home: ServiceHome) -> None:
    for name in ("a", "a" * 63):
        home = ServiceHome(far_home.state, name)
        with home.lock():
            for path in (
                home.admin_socket,
                home.orders_socket,
                home.worker_sockets / ("w" * MAX_WORKER_SOCKET_BYTES),
            ):
                assert len(os.fsencode(path)) <= 100
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(path))
            assert mode(home.socket_dir) == 0o700


def test_a_shell_with_other_variables_finds_the_sockets(
    far_home: ServiceHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    with far_home.lock():
        chosen = far_home.admin_socket
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        monkeypatch.setenv("TMPDIR", "/var/tmp")
        assert far_home.admin_socket == chosen
        with pytest.raises(ConflictError):
            far_home.lock()
        assert far_home.admin_socket == chosen


def test_the_short_directory_is_the_same_at_every_start(far_home: ServiceHome) -> None:
    with far_home.lock():
        first = far_home.socket_dir
    with far_home.lock():
        assert far_home.socket_dir == first
    assert ServiceHome(far_home.state, "other").socket_dir != first


def test_a_short_directory_that_is_a_link_is_refused(far_home: ServiceHome, tmp_path: Path) -> None:
    far_home.socket_dir.symlink_to(tmp_path)
    with pytest.raises(UnavailableError, match="not a link"):
        far_home.lock()
    assert running_pid(far_home) is None


@needs_root
def test_a_short_directory_of_someone_else_is_refused(far_home: ServiceHome) -> None:
    far_home.socket_dir.mkdir()
    os.chown(far_home.socket_dir, NOBODY, NOBODY)
    with pytest.raises(UnavailableError, match=f"uid {NOBODY}"):
        far_home.lock()


def test_a_runtime_directory_that_is_too_long_is_passed_over(
    far_home: ServiceHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    (tmp_path / ("long" * 20)).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("long" * 20)))
    assert far_home.socket_dir.parent == Path(tempfile.gettempdir())


def test_the_key_for_inputs_is_made_once_and_is_the_owners_only(home: ServiceHome) -> None:
    home.create()
    home.make_input_key()
    first = home.input_key.read_bytes()
    assert len(first) == 32
    assert mode(home.input_key) == 0o600
    home.make_input_key()
    assert home.input_key.read_bytes() == first
    other = ServiceHome(home.state, "other")
    other.create()
    other.make_input_key()
    assert other.input_key.read_bytes() != first
    assert [path.name for path in home.path.glob(".input*")] == []


def test_a_key_that_cannot_be_made_is_said_with_its_path(home: ServiceHome) -> None:
    with pytest.raises(UnavailableError, match=r"input\.key: cannot be written"):
        home.make_input_key()


def test_a_key_that_does_not_reach_the_disk_leaves_nothing_behind(home: ServiceHome, monkeypatch) -> None:
    home.create()

    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(UnavailableError, match=r"input\.key: cannot be written"):
        home.make_input_key()
    assert [path.name for path in home.path.iterdir() if "input" in path.name] == []


def test_a_service_that_cannot_be_read_hides_none_of_the_others(home: ServiceHome) -> None:
    other = ServiceHome(home.state, "other")
    other.create()
    other.lock_file.symlink_to(other.path / "journal")
    (other.path / "journal").touch()
    with home.lock():
        assert list_services(home.state) == ["digits", "other"]
        assert running_services(home.state) == ["digits"]
        with pytest.raises(UnavailableError, match="other"):
            running_pid(other)
