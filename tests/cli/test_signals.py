"""SIGINT, SIGTERM and SIGHUP at every moment of beginning and following: the exit code is a documented one, the rollout as it is said."""

import array
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import pytest
from cli_rig import PATIENCE, wait_for

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STARTED = {"rollout": "r-0007", "state": "started", "message": "rollout r-0007 started"}
ROLLED_BACK = {"changed": True, "message": "rolled back", "weight": 0, "phase": "rolled_back", "rollout": "r-0007"}  # fmt: skip
RAMP = ("canary", "ramp")
SMALL_PIPE, LONGEST_LINE = 4096, 512
"""Bytes."""


@pytest.fixture
def service(play):
    one = play()
    one.reply("POST /v1/rollouts", STARTED)
    one.event("started", "pending", 0)
    one.event("climbed", "progressing", 5)
    return one


def calls(service):
    return [order["call"].removeprefix("POST /v1/") for order in service.orders()]


def ended(process):
    """Exit code and the last line of stderr."""
    _, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    return process.returncode, err.splitlines()[-1]


def test_before_the_order_is_sent_nothing_is_begun(cli, service, tmp_path):
    for number in SIGNALS:
        manifest = tmp_path / f"{number}.yaml"
        os.mkfifo(manifest)
        process = cli.start(*RAMP, str(manifest), "--rollback-on-cancel")
        wait_for(lambda fifo=manifest: someone_reads(fifo))
        process.send_signal(number)
        assert ended(process) == (6, f"deployctl: {number.name}: no rollout was begun")
    assert service.orders() == []


def someone_reads(fifo):
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:  # ENXIO: not yet
        return False
    return True


def test_while_the_order_is_on_its_way_the_watching_ends_and_it_is_said_that_it_may_begin(
    cli, service, manifest
):
    service.hold("POST /v1/rollouts")
    for at, number in enumerate(SIGNALS, 1):
        process = cli.start(*RAMP, manifest)
        wait_for(lambda many=at: len(service.orders()) == many)
        process.send_signal(number)
        code, last = ended(process)
        assert code == 6
        assert last.startswith(f"deployctl: {number.name}: the rollout was ordered and begins once")
        assert "deployctl rollback digits" in last
    assert set(calls(service)) == {"rollouts"}


def test_an_order_on_its_way_is_called_off_where_a_cancelled_command_rolls_back(cli, service, manifest):
    service.hold("POST /v1/rollouts")
    service.reply("POST /v1/call-off", {"changed": True, "message": "it does not begin"})
    process = cli.start(*RAMP, manifest, "--rollback-on-cancel")
    wait_for(service.orders)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: len(service.orders()) == 2)
    process.send_signal(signal.SIGHUP)
    service.reply("POST /v1/rollouts", {"error": "person:anna called it off", "exit_code": 7})
    assert ended(process) == (3, "SIGTERM: digits: the rollout was called off before it began")
    order, called_off = service.orders()
    assert called_off["call"] == "POST /v1/call-off"
    assert called_off["ticket"] == order["ticket"] != ""


def test_a_service_that_knows_no_calling_off_has_it_rolled_back_once_it_has_begun(cli, service, manifest):
    service.hold("POST /v1/rollouts")
    service.reply("POST /v1/rollback", ROLLED_BACK)
    process = cli.start(*RAMP, manifest, "--rollback-on-cancel")
    wait_for(service.orders)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: len(service.orders()) == 2)
    service.reply("POST /v1/rollouts", STARTED)
    assert ended(process) == (3, "SIGTERM: digits: rolled back")
    assert calls(service)[-1] == "rollback"


def test_a_conflict_is_7_whatever_was_called_off(cli, service, manifest):
    service.hold("POST /v1/rollouts")
    service.reply("POST /v1/call-off", {"changed": False, "message": "nothing to call off"})
    process = cli.start(*RAMP, manifest, "--rollback-on-cancel")
    wait_for(service.orders)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: len(service.orders()) >= 2)
    service.reply("POST /v1/rollouts", {"error": "rollout r-0006 is running", "exit_code": 7})
    assert ended(process) == (7, "deployctl: rollout r-0006 is running")
    assert "rollback" not in calls(service), "the one that runs is somebody else's"


def test_while_printing_into_a_pipe_that_nobody_reads_a_signal_ends_the_watching(cli, service, manifest):
    for _ in range(60):
        service.event("climbed", "progressing", 10)
    for number, more in zip(SIGNALS, ([], ["-o", "json"], ["-o", "json"]), strict=True):
        process = cli.start(*RAMP, manifest, *more)
        fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, SMALL_PIPE)
        wait_for(lambda pipe=process.stdout: is_full(pipe))
        process.send_signal(number)
        assert process.wait(PATIENCE) == 6
        last = process.stderr.read().splitlines()[-1]
        assert last.startswith(f"deployctl: {number.name}: rollout r-0007 goes on at 10 %")
    assert set(calls(service)) == {"rollouts"}


def test_a_cancelled_command_rolls_back_also_where_nobody_reads_a_word_of_it(cli, service, manifest):
    """Then a second signal ends it, with the code that it has."""
    service.reply("POST /v1/rollback", ROLLED_BACK)
    for _ in range(60):
        service.event("climbed", "progressing", 10)
    with subprocess.Popen(
        cli.command(*RAMP, manifest, "--rollback-on-cancel"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=cli.environment(),
    ) as process:  # fmt: skip
        fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, SMALL_PIPE)
        wait_for(lambda: is_full(process.stdout))
        process.send_signal(signal.SIGINT)
        wait_for(lambda: calls(service)[-1] == "rollback")
        wait_for(lambda: process.send_signal(signal.SIGTERM) or process.poll() is not None)
        assert process.returncode == 3


def is_full(pipe):
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, waiting)
    return waiting[0] > SMALL_PIPE - LONGEST_LINE


def test_a_rollback_of_a_cancelled_command_is_not_interrupted(cli, service, manifest):
    service.hold("POST /v1/rollback")
    process = cli.start(*RAMP, manifest, "--rollback-on-cancel")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    wait_for(lambda: calls(service)[-1] == "rollback")
    for number in SIGNALS:
        process.send_signal(number)
    service.reply("POST /v1/rollback", ROLLED_BACK)
    assert ended(process) == (3, "SIGINT: digits: rolled back")
    assert calls(service) == ["rollouts", "rollback"]


def test_a_rollback_of_a_cancelled_command_that_cannot_be_confirmed_is_4(cli, service, manifest):
    service.reply("POST /v1/rollback", {"error": "no router confirmed it: call a person", "exit_code": 4})
    process = cli.start(*RAMP, manifest, "--rollback-on-cancel")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (4, "deployctl: no router confirmed it: call a person")


@pytest.mark.parametrize(("more", "code", "asked"), [([], 6, 1), (["--rollback-on-cancel"], 3, 2)])
def test_a_terminal_that_is_closed_ends_the_watching(cli, service, manifest, more, code, asked):
    service.reply("POST /v1/rollback", ROLLED_BACK)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *cli.command(*RAMP, manifest, *more)],
        stdin=child, stdout=child, stderr=child, start_new_session=True, env=cli.environment(TERM="dumb"),
    )  # fmt: skip
    os.close(child)
    seen = b""
    while b"words 2" not in seen:
        seen += os.read(parent, 65536)
    os.close(parent)
    assert process.wait(3 * PATIENCE) == code
    assert len(service.orders()) == asked


OWN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


def test_a_disk_that_is_full_ends_the_watching_with_8_and_says_that_the_rollout_goes_on(
    cli, service, manifest
):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            cli.command(*RAMP, manifest), stdout=full, stderr=subprocess.PIPE, text=True, env=cli.environment(),
            check=False, timeout=PATIENCE,
        )  # fmt: skip
    assert done.returncode == 8
    last = done.stderr.splitlines()[-1]
    assert last.startswith("deployctl: stdout: No space left on device; rollout r-0007 goes on")


def test_how_it_ended_is_the_exit_code_though_nobody_reads_the_last_line(cli, service, manifest):
    following = cli.start(*RAMP, manifest, "--until", "paused")
    for _ in range(2):
        following.stdout.readline()
    following.stdout.close()
    service.event("rolled_back", "rolled_back", 0, finished=True, exit_code=3)
    assert following.wait(PATIENCE) in {3, 6}, "6: the event itself was not read"
    assert "goes on" not in following.stderr.read() or following.returncode == 6


def test_a_signal_ends_the_watching_of_a_status_with_6(cli, service):
    for number in SIGNALS:
        watching = cli.start("status", "-w")
        watching.stdout.readline()
        watching.send_signal(number)
        assert (watching.wait(PATIENCE), watching.stderr.read()) == (6, "")


def test_what_nohup_ignores_stays_ignored(cli, service, manifest):
    command = ["nohup", *cli.command(*RAMP, manifest)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cli.environment()
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        service.event("finished", "promoted", 100, finished=True)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
