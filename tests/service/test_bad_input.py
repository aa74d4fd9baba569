"""What is wrong is refused in one line with its exit code, and nothing has changed."""

import os
import shutil
import socket
import subprocess
from contextlib import contextmanager, suppress

import faulty_models
import pytest
from service_rig import NAME, Box, wait_for


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One service at version 1 for all tests that must leave it as it was."""
    box = Box(tmp_path_factory.mktemp("running"))
    try:
        yield box.up()
    finally:
        box.close()


BAD_CANDIDATES = [
    ("no-onnx", "ONNX"),
    ("truncated", "truncated"),
    ("other-input", "inputs are pixels instead of x"),
    ("other-shape", "shape"),
    ("nan-on-zeros", "NaN"),
    ("raises-on-zeros", "raises-on-zeros"),
]


@pytest.mark.parametrize(("candidate", "words"), BAD_CANDIDATES, ids=[name for name, _ in BAD_CANDIDATES])
def test_a_candidate_that_cannot_serve_is_refused_before_it_sees_a_request(running, candidate, words):
    with running.traffic(rate=100) as traffic, running.nothing_changes():
        refused = running.run("canary", "ramp", running.manifest(candidate=candidate, name=candidate))
        refused.refused(2, words, candidate)
        traffic.wait_for_answers(20)
    assert set(traffic.versions) == {"1"}
    assert not traffic.failures
    wait_for(lambda: set(running.status()["pids"]["workers"]) == {"1"}, what="its worker gone")


@pytest.mark.parametrize("model", ["no-onnx", "truncated", "nan-on-zeros", "raises-on-zeros"])
def test_a_service_does_not_start_with_a_model_that_cannot_serve(box, model):
    box.run("up", box.manifest(baseline=("1", model)), "--detach").refused(2, "1")
    assert box.supervisor is None
    assert box.records() == []


def test_a_candidate_that_is_still_being_loaded_is_called_off_by_a_command_that_is_cancelled(running):
    with running.nothing_changes():
        ramping = running.begin(
            "canary", "ramp", running.manifest("hanging", name="hanging"), "--rollback-on-cancel"
        )
        wait_for(lambda: len(running.status()["pids"]["workers"]) == 2, what="its worker")
        ramping.terminate()
        _, err = ramping.communicate(timeout=10)
        assert (ramping.returncode, err) == (
            3,
            f"SIGTERM: {NAME}: the rollout was called off before it began\n",
        )


def test_a_model_file_that_is_missing_is_named(running):
    manifest = running.manifest(candidate="gone", name="gone")
    with running.nothing_changes():
        running.run("canary", "ramp", manifest).refused(2, "gone.onnx")


def test_a_service_does_not_start_without_its_model_file(box):
    box.run("up", box.manifest(baseline="gone"), "--detach").refused(2, "gone.onnx")
    assert box.supervisor is None


def test_a_model_that_is_not_the_one_of_its_digest_is_9(running):
    manifest = running.manifest(candidate="3", name="digest")
    text = manifest.read_text().replace('"version": "3",', f'"version": "3", "digest": "sha256:{"0" * 64}",')
    manifest.write_text(text)
    with running.nothing_changes():
        running.run("canary", "ramp", manifest).refused(9, "3.onnx")


def test_a_model_that_raises_on_its_first_real_request_hurts_only_its_own_share(box):
    box.up()
    with box.traffic(keep_answers=True) as traffic:
        ramped = box.ramp(box.manifest(candidate="raises"))
        assert ramped.code == 3, ramped
        traffic.wait_for_answers(100)
    assert {answer.status for answer in traffic.failures} == {500}
    assert len(traffic.failures) < 60
    status = box.status()
    assert (status["live"], status["phase"], status["weight"]) == ("1", "rolled_back", 0)


def test_a_manifest_with_many_mistakes_lists_them_all_and_changes_nothing(running):
    manifest = running.manifest(name="mistakes")
    text = manifest.read_text()
    for right, wrong in (
        ("minDwell", "minDwel"),
        ("error-rate", "eror-rate"),
        ('"500ms"', '"500 ms"'),
        ("argmax", "argmex"),
        ("deployctl/v1", "deployctl/v9"),
    ):
        text = text.replace(right, wrong)
    manifest.write_text(text)
    with running.nothing_changes():
        for command in (("up", manifest, "--detach"), ("canary", "ramp", manifest), ("lint", manifest)):
            refused = running.run(*command)
            assert refused.code == 2
            problems = (refused.err + refused.out).strip().splitlines()
            assert len([line for line in problems if line.startswith(str(manifest))]) >= 5, refused


@pytest.mark.parametrize(
    "command",
    [["deploy"], ["up"], ["rollback", NAME, "--weight", "3"], ["canary", "climb"], ["status", "-o", "xml"]],
)
def test_a_command_line_that_makes_no_sense_is_2(running, command):
    with running.nothing_changes():
        running.run(*command).refused(2)


def test_a_thousand_long_names_of_classes_are_no_trouble_and_too_many_are_refused(box):
    for label in ("1", "2"):
        box.model_file(f"many-{label}").write_bytes(faulty_models.many_classes(label, 2_000))
    names = {"classes": [f"class {number} {'x' * 15}" for number in range(2_000)], "nullIf": {}}
    versions = {"baseline": ("1", "many-1"), "candidate": ("2", "many-2")}
    too_long = {**names, "classes": [name + "x" * 60 for name in names["classes"]]}
    box.run("up", box.manifest(**versions, prediction=too_long), "--detach").refused(2, "128 KiB")
    box.up(box.manifest(**versions, prediction=names))
    with box.traffic():
        assert box.ramp(box.manifest(**versions, prediction=names)).code == 0


def test_a_port_that_is_taken_is_8_and_named(box):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        manifest = box.manifest(service={"listen": f"127.0.0.1:{port}"})
        box.run("up", manifest, "--detach").refused(8, str(port))
        box.run("up", manifest).refused(8, str(port))
    assert box.supervisor is None
    assert box.records() == []
    box.up(manifest)


@contextmanager
def mounted(folder, options):
    """A file system in memory over this folder: for root no mode makes a directory read-only, and no quota a disk full."""
    command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "deployctl-test", folder]
    mount = subprocess.run(command, capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"cannot mount here: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only(folder):
    if not os.geteuid():
        with mounted(folder, "ro"):
            yield
        return
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)


def test_a_state_directory_that_is_read_only_is_8(box):
    with read_only(box.state):
        box.run("up", box.manifest(), "--detach").refused(8, str(box.state))
    assert list(box.state.iterdir()) == []


def test_a_full_disk_without_a_reserve_is_8_and_moves_no_traffic_until_there_is_room(box):
    with mounted(box.state, "size=1m"):
        try:
            box.up()
            reserve = box.home.journal.with_name("journal.reserve")
            reserve.unlink()
            reserve.mkdir()  # so nothing can be kept back
            assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
            with box.traffic(rate=100) as traffic:
                traffic.wait_for_answers(10, of="2")
                with (box.state / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                    while filler.write(b"x" * 512):
                        pass
                box.pause_and_resume_until_the_disk_is_full()
                journal = box.home.journal.read_bytes()
                box.run("rollback", NAME).refused(8, "journal")
                assert box.home.journal.read_bytes() == journal
                traffic.wait_for_answers(10, of="2")
                (box.state / "filler").unlink()
                back = box.run("rollback", NAME, "-o", "json")
                assert (back.code, back.json["weight"]) == (0, 0)
            assert not traffic.failures
        finally:
            box.stop()


@pytest.mark.parametrize("command", [["status"], ["rollback"], ["promote"], ["pause"], ["down"]])
def test_a_service_that_does_not_run_is_8(box, command):
    box.run(*command).refused(8, "deployctl up")


def test_a_canary_of_a_service_that_does_not_run_is_8_unless_it_may_start_it(box):
    manifest = box.manifest(canary={"minDwell": "60s"})
    box.run("canary", "ramp", manifest).refused(8, "deployctl up", "--up")
    assert box.run("canary", "ramp", manifest, "--up", "--detach").code == 0
    assert box.status()["phase"] in {"pending", "progressing"}


def test_a_flipped_byte_in_the_journal_is_9_until_it_is_recovered(box):
    box.up()
    with box.traffic():
        assert box.ramp(box.manifest()).code == 0
    assert box.run("down", NAME).code == 0
    journal = bytearray(box.home.journal.read_bytes())
    lines = bytes(journal).splitlines(keepends=True)
    damaged = len(b"".join(lines[:4])) + 80
    journal[damaged] ^= 0x01
    box.home.journal.write_bytes(journal)

    box.run("up", box.manifest(), "--detach").refused(9, "journal:5", "--recover")
    assert box.home.journal.read_bytes() == journal, "it is left as it was"
    assert box.supervisor is None

    box.up(box.manifest(), "--recover")
    status = box.status()
    assert (status["live"], status["weight"]) == ("1", 0), "the last live version that is proven"
    assert box.home.journal.with_name("journal.damaged-1").read_bytes() == journal


def test_an_unfinished_last_record_is_cut_and_said(box):
    box.up()
    assert box.run("down", NAME).code == 0
    whole = box.home.journal.read_bytes()
    box.home.journal.write_bytes(whole + whole[:100])
    box.up()
    assert box.home.journal.read_bytes() == whole
    assert "100 bytes of an unfinished record were cut" in (box.home.log / "service.log").read_text()


def test_a_journal_that_is_changed_under_a_running_service_is_9_while_traffic_goes_on(box):
    box.up()
    assert box.run("canary", "ramp", box.manifest(canary={"minDwell": "60s"}), "--detach").code == 0
    box.wait_for_event("climbed", 0)
    journal = box.home.journal.read_bytes()
    with box.traffic() as traffic:
        traffic.wait_for_answers(20, of="2")
        with box.home.journal.open("ab") as file:
            file.write(b"x")
        for _ in range(2):
            box.run("rollback", NAME).refused(9, "journal")
        traffic.wait_for_answers(20, of="2")
        traffic.wait_for_answers(20, of="1")
    assert not traffic.failures
    assert box.home.journal.read_bytes() == journal + b"x"


def test_a_stored_model_that_is_damaged_is_9_and_not_served(box):
    box.up()
    assert box.run("down", NAME).code == 0
    (stored,) = box.home.models.glob("*.onnx")
    stored.chmod(0o600)
    model = bytearray(stored.read_bytes())
    model[len(model) // 2] ^= 0x01
    stored.write_bytes(model)
    box.run("up", box.manifest(), "--detach").refused(9, "1")
    assert box.supervisor is None


def test_a_stored_model_that_is_gone_is_9_and_not_served(box):
    box.up()
    assert box.run("down", NAME).code == 0
    shutil.rmtree(box.home.models)
    box.run("up", box.manifest(), "--detach").refused(9, "version 1")
    assert box.supervisor is None


def test_a_candidate_with_its_classes_in_another_order_is_caught_by_plan(box):
    refused = box.run("plan", box.manifest("off", shadow={}, metrics=("error-rate",)))
    assert refused.code == 2, refused
    assert "with its classes in another order (0 → 1, 1 → 2, 2 → 0)" in refused.out
    planned = box.run("plan", box.manifest("off", shadow={}, metrics=("error-rate",)), "-o", "json")
    assert "another order" in planned.json["class_order_difference"]
    assert box.run("plan", box.manifest("2")).code == 0
