"""Labels from files and from a watched folder, at a real service: what came of each of them is said."""

import json
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from service_rig import wait_for

from deployctl.wire.admin import AdminClient


@pytest.fixture
def answered(box):
    """A service that has answered r0 to r19 with class 0, and `twice` twice."""
    watched = box.folder / "watched"
    watched.mkdir()
    manifest = box.manifest(None)
    document = json.loads(manifest.read_text())
    document["spec"]["labels"] = {"watch": "watched"}
    manifest.write_text(json.dumps(document))
    box.up(manifest)
    url = box.url
    for name in [*(f"r{number}" for number in range(20)), "twice", "twice"]:
        row = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0]}
        body = json.dumps({"id": name, "inputs": [row]}).encode()
        with urllib.request.urlopen(f"{url}/v2/models/m/infer", body) as answer:
            assert answer.status == 200
    return box


def counts(box) -> dict:
    """What the service counts, asked with a label that is refused, so that nothing moves."""
    with AdminClient(box.home.admin_socket) as client:
        return client.post("/v1/labels", {"labels": [{"id": "", "label": "0"}], "by": "test"})


def add(box, text, *more, code=0):
    data = text if isinstance(text, bytes) else text.encode()
    (box.folder / "labels").write_bytes(data)
    ran = box.run("labels", "add", "m", "labels", "-o", "json", *more)
    assert ran.code == code, ran
    return ran.json


def lines(*rows) -> str:
    return "".join(json.dumps({"id": name, "label": label} | more) + "\n" for name, label, more in rows)


def test_every_label_of_a_file_is_accounted_for(answered):
    """Right, contradicting, twice, of an unknown id, of an unknown class, of an id that was answered twice, from the future."""
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    text = lines(
        ("r0", "0", {"annotator": "eve"}),
        ("r1", "1", {}),
        ("r0", "0", {}),
        ("r0", "2", {"annotator": "ann"}),
        ("nobody", "0", {}),
        ("r2", "cat", {}),
        ("twice", "0", {}),
        ("r3", "0", {"at": tomorrow}),
        ("r4", "", {}),
    )
    document = add(answered, text, code=2)
    assert (document["read"], document["sent"], document["accepted"], document["refused"]) == (9, 8, 7, 1)
    assert document["skipped"] == {"empty": 1}
    assert document["format"] == "jsonl"
    assert document["unknown"] == 1
    assert document["ambiguous"] == 1
    ((refusal),) = document["refusals"]
    assert refusal["place"] == "line 8"
    assert "is in the future" in refusal["reason"]
    assert document["joined"] >= 2


def test_a_file_may_come_twice_and_through_stdin(answered):
    text = "id,label\r\n" + "".join(f"r{number},0\r\n" for number in range(20))
    assert add(answered, text)["joined"] == 20
    again = add(answered, text)
    assert (again["accepted"], again["joined"], again["repeated"]) == (20, 0, 20)
    ran = answered.run("labels", "add", "m", "-")
    assert ran.code == 0
    assert ran.out.split() == ["0", "rows", "read", "0", "accepted"]


def test_the_table_for_people_explains_every_row(answered):
    (answered.folder / "labels").write_text(lines(("r0", "0", {}), ("nobody", "0", {}), ("r1", "", {})))
    ran = answered.run("labels", "add", "m", "labels")
    words = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert words == [
        "3 rows read (jsonl)",
        "1 skipped: empty",
        "2 accepted",
        "1 joined with their answer",
        "1 of an id that was not answered here, or not yet",
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b'{"id": "r0", "label": "0"}\n{"id": "r1", "label": "\xff"}\n',
            "labels: line 2: byte 24 is not UTF-8",
        ),
        (b'{"id": "r0", "label": "0"}\n{"id": "r1", "la', "labels: line 2: "),
        (b'{"id": "' + b"x" * 1_100_000, "labels: line 1: more than 1048576 bytes"),
        (b'[{"id": 1, "data": {"text": "hello"}, "annotations": []}]', "no task has 'deployctl_id'"),
        (b"what is this\n", "line 1: neither JSON nor a header"),
    ],
)
def test_a_bad_file_is_2_and_one_line_and_nothing_was_sent(answered, data, words):
    (answered.folder / "labels").write_bytes(data)
    with answered.nothing_changes():
        ran = answered.run("labels", "add", "m", "labels").refused(2, words)
    assert "were sent" not in ran.err


def test_a_file_that_is_bad_further_on_says_how_much_was_sent(answered):
    text = lines(*((f"x{number}", "0", {}) for number in range(6000))) + "half"
    document = add(answered, text, code=2)
    assert "line 6001: " in document["error"]
    assert "5000 labels were sent before that; sending them again is harmless" in document["error"]


def test_what_is_no_call_of_labels_is_refused(answered):
    with AdminClient(answered.home.admin_socket) as client:
        for labels in (None, [{"id": 1, "label": "0"}], [{"id": "a", "label": "0"}] * 5001):
            with pytest.raises(Exception, match="labels"):
                client.post("/v1/labels", {"labels": labels, "by": "test"})
    refused = counts(answered)
    assert refused["refusals"] == [{"index": 0, "reason": "id is empty"}]


def test_a_watched_folder_is_read_while_it_is_written_and_goes_on_after_a_crash(answered):
    watched = answered.folder / "watched"
    text = lines(("r0", "0", {}), ("r1", "0", {}))
    (watched / "a.jsonl").write_text(text[:-5])

    def files():
        return answered.status()["label_files"]

    wait_for(lambda: files()["labels"] == 1, what="the first label")
    with (watched / "a.jsonl").open("a") as file:
        file.write(text[-5:])
    wait_for(lambda: files()["labels"] == 2, what="the second label")
    wait_for((answered.home.path / "label-files.json").exists, what="its memory")
    before = answered.status()["pids"]["controller"]
    answered.kill(before)
    wait_for(lambda: answered.status()["pids"]["controller"] != before, what="another controller")
    with (watched / "a.jsonl").open("a") as file:
        file.write(lines(("r2", "0", {})))
    wait_for(lambda: (seen := files()) and seen["labels"] >= 1, what="the third label")
    assert files()["path"] == str(watched)
