"""doctor: what is wrong with a machine or a service is found and said, and nothing is changed by looking."""

import hashlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import tomllib
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from service_rig import NAME, Box, command, wait_for

from deployctl.cli.doctor import doctor
from deployctl.cli.options import Output
from deployctl.doctor.certificate import validity
from deployctl.doctor.check import Check, Result, document, exit_code, problem, warning
from deployctl.doctor.clock import Clocks, judged, synchronised
from deployctl.doctor.machine import FILES_BESIDE, requirements
from deployctl.doctor.processes import process
from deployctl.doctor.service import Seen, _release, _rollout, _trouble, service_checks
from deployctl.doctor.state import file_system_of, state_checks
from deployctl.errors import Exit, InvalidError
from deployctl.journal import Journal
from deployctl.reserve import RESERVE_BYTES
from deployctl.statedir import ServiceHome
from deployctl.store import Store

TOKEN = "a-token-of-the-line-0123456789"
SPEC = {"listen": "127.0.0.1:0", "model": NAME, "routingKey": None, "timeout": 0.5, "engine": "builtin"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One service for all who only look at it."""
    box = Box(tmp_path_factory.mktemp("box"))
    box.up(box.manifest(candidate=None))
    yield box
    box.close()


@pytest.fixture
def home(tmp_path):
    """A service that does not run, as it was left by one that was stopped: its directories, a model, a journal of one record."""
    home = ServiceHome(tmp_path / "state", NAME)
    home.lock().release()
    return home


def served(home, *, labels=None, log=None, wall="2026-01-01T12:00:00.000Z", **spec):
    """The journal says that version 1 is served with this `spec.service`; its model is in the store."""
    source = home.state.parent / "v1.onnx"
    source.write_bytes(b"a model, as far as a digest goes")
    digest, _ = Store(home.models).add(source)
    record = {"type": "served", "wall": wall, "spec": SPEC | spec, "labels": labels, "log": log,
              "version": {"version": "1", "digest": digest}, "prediction": None, "digests": [digest]}  # fmt: skip
    with Journal.open(home.journal) as journal:
        journal.append(record)
    return home


def found(home):
    return {(check.name, check.result): check for check in service_checks(home)}


def bad(home):
    """What is not ok, by name."""
    return {check.name: check for check in service_checks(home) if check.result is not Result.OK}


def snapshot(folder):
    """Every file with its bytes and all that `stat` says of it, when it was last read aside."""
    said = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        data = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        said[str(path)] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, data)  # fmt: skip
    return said


@contextmanager
def held(pid):
    """A process that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: process(pid).state == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# ── a service that runs ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_service_has_no_problem_and_nothing_is_changed_by_looking(running):
    before = snapshot(running.state)
    ran = running.run("doctor", "-o", "json")
    assert snapshot(running.state) == before
    assert ran.code == 0, ran
    assert ran.err == ""
    assert {"schema_version", "release", "checks", "problems", "warnings"} == set(ran.json)
    assert all({"name", "service", "result", "found", "advice"} == set(check) for check in ran.json["checks"])
    ours = {check["name"]: check for check in ran.json["checks"] if check["service"] == NAME}
    assert {check["result"] for check in ours.values()} == {"ok"}, ours
    wanted = {"directory", "running", "processes", "admin", "ready", "release", "rollout", "journal", "models", "log-size"}  # fmt: skip
    assert set(ours) == wanted
    machine = {check["name"] for check in ran.json["checks"] if check["service"] is None}
    assert machine == {"python", "packages", "code", "kernel", "open-files", "memory", "state-directory", "file-system", "disk",
                       "sockets", "clock"}  # fmt: skip
    results = [check["result"] for check in ran.json["checks"]]
    assert (results.count("problem"), results.count("warning")) == (0, ran.json["warnings"])


def test_a_controller_that_hangs_costs_two_seconds_and_is_named(running):
    controller = running.status()["pids"]["controller"]
    with held(controller):
        said = bad(running.home)
    assert set(said) == {"admin", "processes"}
    assert "does not answer within 2 s" in said["admin"].found
    assert said["processes"].advice == f"kill -CONT {controller}"
    assert exit_code(said.values()) == Exit.UNAVAILABLE


def test_a_router_that_hangs_is_named(running):
    [router] = running.status()["pids"]["routers"]
    with held(router):
        said = bad(running.home)
    assert set(said) == {"ready", "processes"}
    assert "no router answers" in said["ready"].found
    assert f"router (pid {router}) stands still" in said["processes"].found


def test_a_socket_that_somebody_removed_is_missed_while_callers_are_served(running):
    aside = running.home.admin_socket.with_name("aside")
    running.home.admin_socket.rename(aside)
    try:
        said = bad(running.home)
    finally:
        aside.rename(running.home.admin_socket)
    assert set(said) == {"admin"}
    assert "is gone" in said["admin"].found
    assert f"deployctl down {NAME}" in said["admin"].advice


def test_a_journal_that_is_damaged_under_a_running_service_is_exit_code_9_and_not_touched(running):
    journal = running.home.journal
    with journal.open("r+b") as opened:
        opened.seek(-9, os.SEEK_END)
        opened.write(b"?")
    before = snapshot(running.state)
    try:
        said = bad(running.home)
        assert snapshot(running.state) == before
    finally:
        with journal.open("r+b") as opened:
            opened.seek(-9, os.SEEK_END)
            opened.write(b'"')
    assert set(said) == {"journal"}
    assert f"{journal}:1: this record is damaged: its hash does not match" in said["journal"].found
    assert said["journal"].advice.startswith(f"deployctl down {NAME}, then deployctl up FILE --recover")
    assert exit_code(said.values()) == Exit.INTEGRITY


# ── a service that does not ────────────────────────────────────────────────────────────────────────────────────────


def test_a_stopped_service_is_nothing_wrong(home):
    assert bad(served(home)) == {}
    assert ("running", Result.OK) in found(home)


def test_a_service_that_was_never_started_is_nothing_wrong(home):
    assert bad(home) == {}


def test_who_holds_the_port_of_a_stopped_service_is_named(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        said = bad(served(home, listen=listen))
        assert set(said) == {"port"}
        assert f"{listen} is held by pid {os.getpid()} ({command(os.getpid())[0]}" in said["port"].found
    assert bad(home) == {}


def test_an_address_that_this_machine_does_not_have_is_a_problem(home):
    assert "192.0.2.1:80" in bad(served(home, listen="192.0.2.1:80"))["port"].found


def test_a_damaged_journal_says_which_record_and_how_to_go_on(home):
    served(home)
    served(home)
    lines = home.journal.read_bytes().splitlines(keepends=True)
    home.journal.write_bytes(lines[0] + lines[1].replace(b"engine", b"engima"))
    before = snapshot(home.path)
    said = bad(home)
    assert snapshot(home.path) == before
    assert f"{home.journal}:2: this record is damaged" in said["journal"].found
    assert "1 before it are proven" in said["journal"].found
    assert "--recover" in said["journal"].advice
    assert exit_code(said.values()) == Exit.INTEGRITY


def test_a_record_that_a_power_cut_left_unfinished_is_a_warning_only(home):
    served(home)
    with home.journal.open("ab") as journal:
        journal.write(b"0123")
    said = bad(home)
    assert set(said) == {"journal"}
    assert "4 bytes of an unfinished one" in said["journal"].found
    assert exit_code(said.values()) == Exit.DONE


def test_a_journal_of_a_newer_release_is_exit_code_9_and_says_so(home):
    served(home)
    with Journal.open(home.journal) as journal:
        journal.append({"type": "teleported", "wall": "2027-01-01T00:00:00.000Z"})
    said = bad(home)
    assert "newer release" in f"{said['journal'].found} {said['journal'].advice}"
    assert exit_code(said.values()) == Exit.INTEGRITY


def test_a_model_that_is_gone_or_another_is_exit_code_9(home):
    served(home)
    [model] = home.models.iterdir()
    model.chmod(0o600)
    model.write_bytes(b"another")
    assert "(version 1)" in bad(home)["models"].found
    model.unlink()
    said = bad(home)
    assert "the model of version 1 is gone" in said["models"].found
    assert exit_code(said.values()) == Exit.INTEGRITY


def test_a_journal_from_the_future_says_that_the_clock_was_set_back(home):
    ahead = (datetime.now(UTC) + timedelta(hours=3)).isoformat(timespec="milliseconds")
    said = bad(served(home, wall=ahead))
    assert set(said) == {"clock"}
    assert "set back" in said["clock"].found


def test_a_disk_that_is_smaller_than_the_log_may_grow_is_a_warning(home):
    said = bad(served(home, log={"inputs": "hash", "max_bytes": 1 << 60}))
    assert set(said) == {"log-size"}
    assert "spec.log.maxSize" in said["log-size"].found


def test_more_callers_than_a_process_may_open_files_for_are_a_warning(home):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no limit here")
    said = bad(served(home, limits={"connections": hard}))
    assert set(said) == {"open-files"}
    assert f"{hard + FILES_BESIDE:,}" in said["open-files"].found


def test_the_folder_of_label_files_must_be_there(home, tmp_path):
    labels = {"watch": str(tmp_path / "labels"), "format": None, "idKey": "id", "fromName": None}
    said = bad(served(home, labels=labels))
    assert "no such directory" in said["label-files"].found
    (tmp_path / "labels").mkdir()
    assert bad(home) == {}


def test_what_was_half_written_or_kept_aside_is_spoken_of(home):
    served(home)
    (home.path / "journal.damaged-1").touch()
    (home.models / ".incoming-x").touch()
    leftovers = [check.found for check in service_checks(home) if check.name == "leftovers"]
    assert any(".incoming-x" in words for words in leftovers)
    assert any("journal.damaged-1" in words for words in leftovers)


def test_sockets_that_a_killed_service_left_are_spoken_of(home):
    served(home)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home.admin_socket))
    said = bad(home)
    assert set(said) == {"leftovers"}
    assert "admin.sock" in said["leftovers"].found
    assert exit_code(said.values()) == Exit.DONE


def test_a_lock_that_is_held_by_nobody_who_lives_is_a_problem(home):
    served(home)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with home.lock():
        home.lock_file.write_text(f"{ended.pid}\n")
        said = bad(home)
    assert f"(pid {ended.pid}) is gone" in said["running"].found
    assert "fuser" in said["running"].advice


# ── who is let in ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.mark.parametrize(("left", "result"), [(timedelta(days=90), None), (timedelta(days=3), Result.WARNING), (timedelta(days=-1), Result.PROBLEM)])  # fmt: skip
def test_a_certificate_is_spoken_of_before_it_ends(home, tmp_path, authority, left, result):
    ends = datetime.now(UTC) + left
    issued = authority.issue_cert("127.0.0.1", not_before=ends - timedelta(days=100), not_after=ends)
    cert, key = tmp_path / "box.crt", tmp_path / "box.key"
    cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    key.chmod(0o600)
    assert abs(validity(cert.read_text()).ends - ends) < timedelta(seconds=2)
    said = bad(served(home, tls={"cert": str(cert), "key": str(key)}))
    assert {name: check.result for name, check in said.items()} == ({"tls": result} if result else {})
    key.chmod(0o644)
    assert "others may read it" in bad(home)["tls"].found


def test_tokens_that_cannot_be_read_are_a_problem_and_never_quoted(home, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\nshort\n")
    tokens.chmod(0o600)
    said = bad(served(home, tokens=str(tokens)))
    assert f"{tokens}:2" in said["tokens"].found
    assert "short" not in said["tokens"].found.replace("too short", "")
    tokens.write_text(f"{TOKEN}\n")
    assert bad(home) == {}


# ── the status of one that runs, in documents ──────────────────────────────────────────────────────────────────────


def test_an_open_rollout_says_what_it_waits_for(home):
    waiting = {"rollout": "r-1", "finished": False, "phase": "paused", "step": 2, "steps": 6, "weight": 10, "waits_for": "person", "reason": ""}  # fmt: skip
    [check] = _rollout(NAME, waiting)
    assert check.result is Result.WARNING
    assert check.advice == f"deployctl promote {NAME}, or deployctl rollback {NAME}"
    [check] = _rollout(NAME, waiting | {"waits_for": None})
    assert check.advice == f"deployctl resume {NAME}"
    [check] = _rollout(NAME, waiting | {"waits_for": None, "phase": "progressing", "reason": "needs more"})
    assert (check.result, check.found[-10:]) == (Result.OK, "needs more")


def test_another_release_half_an_upgrade_and_a_worker_that_crashes_are_spoken_of(home):
    [check] = _release(NAME, {"release": "0.0.9", "upgrade": {"left": [], "trouble": None}})
    assert (check.result, check.advice) == (Result.WARNING, f"deployctl upgrade {NAME}")
    [check] = _release(NAME, {"release": "0.0.9", "upgrade": {"left": ["router"], "trouble": None}})
    assert "router" in check.found
    [check] = _release(NAME, {"release": "0.0.9", "upgrade": {"left": [], "trouble": "it cannot"}})
    assert check.result is Result.PROBLEM
    words = "version 1: its worker ended 5 times in a row"
    [check] = _trouble(Seen(home, status={"trouble": words}))
    assert (check.result, check.found) == (Result.PROBLEM, words)


# ── the machine ────────────────────────────────────────────────────────────────────────────────────────────────────


def states(state):
    return {check.name: check for check in state_checks(state)}


def test_a_state_directory_that_is_not_there_yet_is_nothing_wrong(tmp_path):
    assert {check.result for check in states(tmp_path / "new" / "state").values()} <= {Result.OK}
    assert not (tmp_path / "new").exists()


def test_a_state_directory_that_others_may_use_is_spoken_of(tmp_path):
    for mode, result in ((0o755, Result.WARNING), (0o777, Result.PROBLEM)):
        tmp_path.chmod(mode)
        check = states(tmp_path)["state-directory"]
        assert (check.result, check.advice) == (result, f"chmod 700 {tmp_path}")


def test_without_a_home_the_machine_is_looked_at_all_the_same(monkeypatch, capsys):
    for name in ("HOME", "DEPLOYCTL_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert doctor(None, Output.JSON) == 8
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["state-directory"]["advice"] == "set one of them"
    assert [name for name, check in checks.items() if check["result"] == "problem"] == ["state-directory"]
    assert checks["code"]["result"] == "ok"


def test_a_state_directory_that_cannot_be_read_is_a_problem(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    said = states(loop)
    assert said["state-directory"].result is Result.PROBLEM
    assert "symbolic links" in said["state-directory"].found


@pytest.mark.parametrize("closed", [".", ".."])
def test_a_directory_without_rights_is_a_problem(closed):
    with tempfile.TemporaryDirectory(prefix="dctl", dir="/tmp") as folder:
        state = Path(folder, "above", "state")
        state.mkdir(parents=True)
        Path(folder).chmod(0o755)
        Path(state, closed).chmod(0o000)
        with somebody_else():
            check = states(state)["state-directory"]
        Path(state, closed).chmod(0o700)
    assert check.result is Result.PROBLEM
    assert "Permission denied" in check.found


@contextmanager
def somebody_else():
    """Root may do everything: a user without rights looks in its place."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_disk_is_a_problem_and_is_looked_at_all_the_same(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk needs root")
    try:
        home = ServiceHome(disk, NAME)
        home.lock().release()
        served(home)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        machine, ours = states(disk), bad(home)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert "mounted read-only" in machine["state-directory"].found
    assert machine["file-system"].result is Result.WARNING
    assert "tmpfs" in machine["file-system"].found
    assert machine["disk"].result is Result.WARNING
    assert "mounted read-only" in ours["directory"].found


def test_a_network_file_system_is_known_by_its_mount():
    table = (
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "40 27 0:50 / /mnt/a\\040share rw,relatime shared:9 - nfs4 box:/export rw\n"
        "41 27 0:51 / /mnt rw - fuse.sshfs there: rw\n"
    )
    assert file_system_of(Path("/mnt/a share/state"), table) == ("nfs4", "/mnt/a share")
    assert file_system_of(Path("/mnt/b"), table) == ("fuse.sshfs", "/mnt")
    assert file_system_of(Path("/var"), table) == ("ext4", "/")
    assert file_system_of(Path("/var"), "nonsense") == ("?", "?")


def test_a_clock_that_jumps_or_cannot_be_right_is_spoken_of():
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
    before = Clocks(noon, 100.0)

    def result(wall, kept_right=True):
        [check] = judged(before, Clocks(wall, 101.0), kept_right)
        return check.result

    assert result(noon + 1.0) is Result.OK
    assert result(noon + 1.0, kept_right=None) is Result.OK
    assert result(noon + 1.0, kept_right=False) is Result.WARNING
    assert result(noon - 3600.0) is Result.WARNING
    assert result(0.0) is Result.PROBLEM
    assert synchronised() in {True, False, None}


def test_every_package_that_deployctl_needs_is_among_those_that_are_looked_at():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert len(requirements(project["dependencies"])) == len(project["dependencies"])
    assert requirements(['pyarrow>=18; extra == "parquet"']) == {}


def test_the_exit_code_is_that_of_the_worst():
    wrong = problem("a", "b", "c")
    assert exit_code([Check("a", "b"), warning("a", "b", "c")]) == Exit.DONE
    assert exit_code([warning("a", "b", "c"), wrong]) == Exit.UNAVAILABLE
    assert exit_code([wrong, problem("a", "b", "c", integrity=True)]) == Exit.INTEGRITY
    assert document("1", [wrong, wrong])["problems"] == 2


def test_a_name_that_is_none_is_usage_and_one_that_is_not_known_a_problem(home):
    with pytest.raises(InvalidError, match="no service name"):
        doctor("No Name")
    said = bad(ServiceHome(home.state, "nobody"))
    assert "no state of a service of this name" in said["running"].found
    assert not (home.state / "nobody").exists()


def test_the_reserve_of_a_journal_that_was_used_up_is_spoken_of(running):
    reserve = running.home.path / "journal.reserve"
    os.truncate(reserve, 0)
    try:
        said = bad(running.home)
    finally:
        os.truncate(reserve, RESERVE_BYTES)
    assert set(said) == {"reserve"}
