"""Label files: every row ends as a label, as a count with its reason, or as an error that names its line."""

import csv
import io
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployctl.core.label import Label
from deployctl.errors import InvalidError
from deployctl.labels import LABEL_SOURCES, BadFileError, Folder, Reading, Wanted
from deployctl.labels.source import MAX_LINE

AT = "2026-01-31T12:00:00Z"


def reading(data, form=None, **wanted) -> Reading:
    data = data if isinstance(data, bytes) else data.encode()
    return Reading(io.BytesIO(data), "f", Wanted(**wanted), form)


def read(data, form=None, **wanted) -> tuple[list[Label], dict]:
    """The labels, and how many rows were none, by reason; every row is one or the other."""
    one = reading(data, form, **wanted)
    labels = [label for label, _ in one]
    skipped = {reason: times for reason, times in one.tally.skipped.items() if times}
    assert one.tally.read == len(labels) + sum(skipped.values())
    return labels, skipped


def refused(data, form=None, **wanted) -> str:
    with pytest.raises(BadFileError) as caught:
        read(data, form, **wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(*documents) -> str:
    return "".join(json.dumps(document) + "\n" for document in documents)


# ── JSONL ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_a_label():
    data = lines(
        {"id": "a", "label": "7", "annotator": "eve", "at": AT, "shown": True},
        {"event_id": "b", "label": "3", "labeled_at": AT, "weight": 2},
        {"id": 17, "label": 4},
    )
    assert read(data)[0] == [
        Label("a", "7", "eve", AT, shown=True),
        Label("b", "3", None, AT),
        Label("17", "4"),
    ]


def test_lines_without_a_label_are_counted_by_reason():
    data = lines({"id": "a"}, {"label": "7"}, {"id": "", "label": "7"}, {"id": "b", "label": "x" * 5000}, {})
    assert read(data) == ([], {"empty": 1, "no_id": 3, "too_long": 1})


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_matter():
    data = b'\xef\xbb\xbf{"id": "a", "label": "7"}\r\n\r\n  \n{"id": "b", "label": "\xc3\xa9"}'
    assert read(data)[0] == [Label("a", "7"), Label("b", "é")]
    assert [place for _, place in reading(data)] == [1, 4]


def test_an_empty_file_has_no_labels():
    for data in ("", "\n\n", "[]"):
        assert read(data) == ([], {})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"id": "a", "label": "\xff"}\n', "byte 23 is not UTF-8"),
        (b'{"id": "a", "label"\n', "truncated"),
        (b'{"id": "a", "label": "\\ud800"}\n', "truncated"),
        (b"[1, 2]\n", "a JSON object"),
        (b'{"id": ["a"], "label": "7"}\n', "must be text, not list"),
        (b'{"id": "a", "label": 7.5}\n', "'label' must be text, not float"),
        (b'{"id": "a", "label": "7", "shown": "no"}\n', "'shown' must be true or false"),
        (b'{"id": ' + b"[" * 100_000 + b"\n", "recursion"),
        (b'{"id": "a", "label": "7"', "the last line is not finished"),
    ],
)
def test_a_line_that_cannot_be_read_is_an_error_with_its_number(bad, words):
    message = refused(b'{"id": "x", "label": "7"}\n\n' + bad)
    assert message.startswith("f: line 3: ")
    assert words in message


class Endless(io.RawIOBase):
    """A line that never ends; `given` is how much of it was read."""

    def __init__(self, start: bytes) -> None:
        self.start, self.given = start, 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int) -> bytes:
        piece = (self.start + b"x" * size)[:size]
        self.start, self.given = b"", self.given + size
        return piece


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (b"", 1),
        (b'{"id": "', 1),
        (b'{"id": "a", "label": "7"}\n{"id": "', 2),
        (b"id,label\na,7\nb,", 3),
        (b'id,label\na,7\nb,"', 3),
    ],
)
def test_one_endless_line_is_refused_before_more_than_it_may_have_was_read(start, line):
    stream = Endless(start)
    with pytest.raises(BadFileError, match=rf"^f: line {line}: more than 1048576 bytes"):
        list(Reading(stream, "f", Wanted()))
    assert stream.given <= MAX_LINE + 2 * 65536


def test_a_quote_that_is_never_closed_is_refused_when_the_row_is_too_long():
    assert "line 2: more than" in refused('id,label\n"a,7\n' + "b,8\n" * MAX_LINE)


# ── Prodigy ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prodigy_rows_join_by_meta_and_never_by_hash():
    choice = {
        "_input_hash": 1,
        "_session_id": "set-eve",
        "_timestamp": 0,
        "accept": ["7"],
        "answer": "accept",
    }
    labels, skipped = read(
        lines(
            choice | {"meta": {"id": "a"}},
            choice | {"meta": {"deployctl_id": "b"}, "_annotator_id": "ann"},
            {"meta": {"id": "c"}, "label": "SPAM", "answer": "accept"},
            choice | {"meta": {}},
            choice,
            choice | {"answer": "reject"},
            choice | {"answer": "ignore"},
            choice | {"meta": {"id": "d"}, "accept": ["1", "2"]},
            choice | {"meta": {"id": "e"}, "accept": []},
            {"meta": {"id": "f"}, "spans": [], "answer": "accept"},
        )
    )
    assert labels == [
        Label("a", "7", "set-eve", "1970-01-01T00:00:00+00:00"),
        Label("b", "7", "ann", "1970-01-01T00:00:00+00:00"),
        Label("c", "SPAM"),
    ]
    assert skipped == {
        "no_id": 2, "rejected": 1, "ignored": 1, "several_choices": 1, "empty": 1, "not_a_choice": 1,
    }  # fmt: skip


# ── CSV ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_read_by_its_header(mark, end, delimiter):
    rows = ["event_id,text,label,annotator,labeled_at,shown", f"a,x,7,eve,{AT},true", "", "b,,3,,,"]
    data = mark + end.join(rows).replace(",", delimiter).encode()
    assert read(data)[0] == [Label("a", "7", "eve", AT, shown=True), Label("b", "3")]


def test_a_quoted_cell_may_have_lines_and_the_number_of_a_row_is_that_of_its_first():
    found = list(reading('id,label\na,"two\nlines"\nb,"say ""7"""\n'))
    assert found == [(Label("a", "two\nlines"), 2), (Label("b", 'say "7"'), 4)]


def test_cells_that_are_empty_are_counted():
    assert read("id,label\n,7\na,\n") == ([], {"no_id": 1, "empty": 1})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("id,label\na,7\nb\n", "line 3: 1 fields, and 2 columns"),
        ("id,label\na,7\nb,8,9\n", "line 3: 3 fields, and 2 columns"),
        ('id,label\na,7\n"b"x,8\n', "line 3: ',' expected after '\"'"),
        ('id,label\na,7\nb,"half of', "line 3: unexpected end of data; the last row is not finished"),
        (b"id,label\na,7\nb,\xff\n", "line 3: byte 3 is not UTF-8"),
        ("id,label,shown\na,7,maybe\n", "line 2: shown is true, false or empty, not 'maybe'"),
        ("id,said\na,7\n", "line 1: no column 'label' in the header (columns: id, said)"),
        ("key,label\na,7\n", "line 1: no column 'deployctl_id' or 'id' or 'event_id'"),
        ("id,annotation_id,label\n1,2,7\n", "line 1: this is a Label Studio table without the column"),
        ("just text\n", "line 1: neither JSON nor a header"),
        ("\xff\xfei\0d\0,\0".encode("latin-1"), "line 1: neither JSON nor a header"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_with_its_line(data, words):
    assert words in refused(data)


def test_a_table_of_label_studio_is_joined_by_the_key_of_the_request():
    data = "annotation_id,annotator,deployctl_id,id,digit\n5,1,a,900,7\n"
    assert read(data, from_name="digit")[0] == [Label("a", "7", "1")]


# ── Label Studio ───────────────────────────────────────────────────────────────────────────────────────────────────


def annotation(*choices, **changes):
    picked = {
        "from_name": "digit",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": list(choices)},
    }
    own = {"id": 1, "completed_by": 4, "result": [picked], "was_cancelled": False, "parent_prediction": None}
    return own | {"created_at": AT, "updated_at": AT, "task": 17} | changes


def task(request, *annotations, **changes):
    data = {"image": "/data/7.png"} | ({"deployctl_id": request} if request is not None else {})
    return {"id": 17, "data": data, "annotations": list(annotations), "predictions": []} | changes


def studio(*tasks) -> str:
    return json.dumps(list(tasks), indent=1)


def test_a_task_is_joined_by_its_data_and_not_by_its_own_id():
    assert read(studio(task("a", annotation("7"))))[0] == [Label("a", "7", "4", AT)]
    assert read(studio(task(23, annotation("7"))))[0] == [Label("23", "7", "4", AT)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "document",
    [
        [task("a", annotation("7"))],
        task("a", annotation("7")),
        annotation("7", task={"id": 17, "data": {"deployctl_id": "a"}}),
    ],
    ids=["tasks", "one task", "one annotation with its task inside"],
)
@pytest.mark.parametrize("form", [None, "label-studio"])
def test_every_shape_of_the_export_is_recognised(document, indent, form):
    one = reading(json.dumps(document, indent=indent), form)
    assert [label for label, _ in one] == [Label("a", "7", "4", AT)]
    assert one.format == "label-studio"


@pytest.mark.parametrize(
    ("person", "annotator"),
    [
        (4, "4"),
        ({"id": 4, "email": "eve@example.org"}, "4"),
        ({"email": "eve@example.org"}, "eve@example.org"),
        (None, None),
    ],
)
def test_an_annotator_is_the_users_id_in_whichever_form_it_is_written(person, annotator):
    ((label,), _) = read(studio(task("a", annotation("7", completed_by=person))))
    assert label.annotator == annotator


@pytest.mark.parametrize("made_from", [{"parent_prediction": 5}, {"last_action": "prediction"}])
def test_an_annotation_made_from_a_prediction_was_shown_the_model(made_from):
    ((label,), _) = read(studio(task("a", annotation("7", **made_from))))
    assert label.shown is True
    ((label,), _) = read(studio(task("a", annotation("7"))))
    assert label.shown is None


def test_annotations_that_give_no_label_are_counted_by_reason():
    box = {"from_name": "box", "type": "rectanglelabels", "value": {"x": 1}}
    labels, skipped = read(
        studio(
            task("a", annotation("7", was_cancelled=True)),
            task("b", annotation(result=[box]), annotation(result=[], completed_by=5)),
            task("c", annotation("1", "2"), annotation(completed_by=5)),
            task("d", drafts=[{"result": []}, {}]),
            task("e"),
            task(None, annotation("7")),
            task("f", annotation("7")),
        )
    )
    assert labels == [Label("f", "7", "4", AT)]
    assert skipped == {
        "cancelled": 1, "not_a_choice": 1, "empty": 2, "several_choices": 1, "draft": 2, "not_annotated": 1, "no_id": 1,
    }  # fmt: skip


def test_of_one_annotator_the_latest_counts_whatever_the_order():
    older = annotation("7", updated_at="2026-01-31T13:00:00+02:00")
    newer = annotation("3", updated_at="2026-01-31T12:00:00.5Z")
    other = annotation("1", completed_by=9)
    for tasks in ([task("a", newer, older, other)], [task("a", newer), task("a", older, other)]):
        labels, skipped = read(studio(*tasks))
        assert [(label.label, label.annotator) for label in labels] == [("3", "4"), ("1", "9")]
        assert skipped == {"superseded": 1}


def test_several_questions_are_not_guessed_between():
    two = annotation("7")["result"] + [
        {"from_name": "clear", "type": "choices", "value": {"choices": ["yes"]}}
    ]
    data = studio(task("a", annotation(result=two)))
    assert "several questions: clear, digit; say with --from-name" in refused(data)
    assert read(data, from_name="clear")[0][0].label == "yes"
    assert "no question 'x' in this file (questions: clear, digit)" in refused(data, from_name="x")


def test_the_export_of_another_project_is_an_error_that_says_what_to_do():
    message = refused(studio(task(None, annotation("7")), task(None, annotation("3"))))
    assert "no task has 'deployctl_id' in its data (there: image)" in message
    assert "--id-key" in message
    assert read(studio(task(None, annotation("7"))), id_key="image")[0][0].id == "/data/7.png"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (studio(task("a", annotation("7")))[:-5], "no whole JSON document"),
        (studio(task("a", annotation("7"))) + "x", "no whole JSON document"),
        ('[\n{"data": {"deployctl_id": "\udcff"}}]'.encode(errors="surrogateescape"), "line 2: this is not UTF-8"),
        ('[{"data": {"deployctl_id": "a"}, "annotations": 7}]', "no Label Studio export: Expected `array | null`"),
        ('[{"data": {"deployctl_id": ["a"]}, "annotations": []}]', "task 1: data.deployctl_id must be text, not list"),
        ('[{"data": {"x": ' + "[" * 100_000, "no whole JSON document"),
        ("[1, 2]", "no Label Studio export"),
    ],
)  # fmt: skip
def test_a_document_that_cannot_be_read_is_one_clear_line(data, words):
    assert words in refused(data)


def test_a_document_larger_than_memory_allows_is_refused(monkeypatch):
    monkeypatch.setattr("deployctl.labels.label_studio.MAX_DOCUMENT", 2**20)
    stream = Endless(b"[\n")
    with pytest.raises(BadFileError, match="more than 1 MiB of JSON in one file"):
        list(Reading(stream, "f", Wanted()))
    assert stream.given <= 2**20 + 2 * 65536


MIN = {
    "deployctl_id": "a",
    "image": "/7.png",
    "id": 1,
    "annotator": 4,
    "annotation_id": 9,
    "updated_at": AT,
    "lead_time": 2,
}


def test_json_min_is_recognised_and_read():
    rows = [
        MIN | {"choice": "7"},
        MIN | {"deployctl_id": "b", "choice": {"choices": ["1", "2"]}},
        MIN | {"deployctl_id": "c"},
        MIN | {"deployctl_id": "a", "choice": "8", "updated_at": "2026-01-31T11:00:00Z"},
    ]
    for form in (None, "label-studio-min"):
        labels, skipped = read(json.dumps(rows), form)
        assert labels == [Label("a", "7", "4", AT)]
        assert skipped == {"several_choices": 1, "empty": 1, "superseded": 1}
    assert read(json.dumps([MIN | {"digit": "7"}]), from_name="digit")[0][0].label == "7"
    assert "which key is the label? Say it with --from-name" in refused(json.dumps([MIN | {"digit": "7"}]))
    assert "no task has 'deployctl_id'" in refused(json.dumps([{"id": 1, "choice": "7"}]))


# ── any file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(
        InvalidError, match=r"unknown format 'xml' .known: jsonl, csv, label-studio, label-studio-min"
    ):
        reading("", "xml")
    assert list(LABEL_SOURCES) == [source.name for source in LABEL_SOURCES.values()]


def test_a_form_that_is_forced_is_not_guessed():
    assert "line 1" in refused("id,label\na,7\n", "jsonl")
    assert read('{"id": "a", "label": "7", "data": 1}\n', "jsonl")[0] == [Label("a", "7")]


TEXT = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), min_size=1, max_size=12
).filter(lambda text: text == text.lstrip())
LABELS = st.lists(
    st.builds(
        Label, TEXT, TEXT, st.none() | TEXT, st.none() | st.just(AT), st.sampled_from([None, True, False])
    ),
    max_size=12,
)


def as_jsonl(labels) -> bytes:
    return b"".join(msgspec.json.encode(label) + b"\n" for label in labels)


def as_csv(labels) -> bytes:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writerow(["id", "label", "annotator", "at", "shown"])
    for one in labels:
        shown = {None: "", True: "true", False: "false"}[one.shown]
        table.writerow([one.id, one.label, one.annotator or "", one.at or "", shown])
    return out.getvalue().encode()


@given(LABELS, st.sampled_from([as_jsonl, as_csv]))
def test_what_was_written_is_read_again(labels, written):
    assert read(written(labels))[0] == labels


@settings(max_examples=40)
@given(
    labels=LABELS,
    written=st.sampled_from([as_jsonl, as_csv]),
    cuts=st.lists(st.integers(0, 800), max_size=6),
    limit=st.integers(1, 5),
    restart=st.booleans(),
)
def test_in_whatever_pieces_a_file_is_written_a_watched_folder_gives_the_same_labels(
    tmp_path_factory, labels, written, cuts, limit, restart
):
    data = written(labels)
    home = tmp_path_factory.mktemp("home")
    watched = home / "watched"
    watched.mkdir()
    folder, got = Folder(watched, home / "memory", Wanted()), []
    start = 0
    for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        with (watched / "labels").open("ab") as file:
            file.write(data[start:end])
        start = end
        while True:
            new = folder.poll(limit)
            assert len(new) <= limit
            got += new
            folder.remember()
            if restart:
                folder = Folder(watched, home / "memory", Wanted())
            if not new and not folder.more:
                break
    assert got == labels
    assert folder.notes() == []


def test_a_hundred_thousand_lines_need_no_more_memory_than_one(tmp_path: Path):
    import tracemalloc

    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        for number in range(100_000):
            file.write(b'{"id": "request-%d", "label": "7", "text": "%s"}\n' % (number, b"x" * 100))
    tracemalloc.start()
    with path.open("rb") as file:
        count = sum(1 for _ in Reading(file, "f", Wanted()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 2 * 2**20 < path.stat().st_size


# ── a watched folder ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def watched(tmp_path):
    path = tmp_path / "watched"
    path.mkdir()
    return path


@pytest.fixture
def folder(tmp_path, watched):
    return Folder(watched, tmp_path / "memory", Wanted())


def ids(labels) -> list[str]:
    return [label.id for label in labels]


def row(request) -> str:
    return json.dumps({"id": request, "label": "7"}) + "\n"


def test_half_a_line_waits_for_its_other_half(folder, watched):
    (watched / "a.jsonl").write_text(row("a") + row("b")[:9])
    assert ids(folder.poll()) == ["a"]
    with (watched / "a.jsonl").open("a") as file:
        file.write(row("b")[9:])
    assert ids(folder.poll()) == ["b"]
    assert folder.notes() == []


def test_a_half_line_that_nobody_finishes_is_spoken_of_once(folder, watched):
    (watched / "a.jsonl").write_text(row("a") + row("b")[:9])
    folder.now = lambda: (watched / "a.jsonl").stat().st_mtime + 60
    folder.poll()
    folder.poll()
    (note,) = folder.notes()
    assert "a.jsonl: line 2: the last row is not finished" in note


def test_a_document_is_taken_when_it_is_whole(folder, watched):
    text = studio(task("a", annotation("7")))
    (watched / "export.json").write_text(text[:100])
    assert folder.poll() == []
    (watched / "export.json").write_text(text)
    assert ids(folder.poll()) == ["a"]
    assert folder.poll() == []


@pytest.mark.parametrize(
    "after",
    [row("c"), row("c") + row("d") + row("e"), row("c") + row("b") + row("d")],
    ids=["shorter", "longer", "the same beginning gone"],
)
def test_a_file_that_was_truncated_or_replaced_is_read_again_and_that_is_said(folder, watched, after):
    path = watched / "a.jsonl"
    path.write_text(row("a") + row("b"))
    assert ids(folder.poll()) == ["a", "b"]
    path.write_text(after)
    assert ids(folder.poll()) == [json.loads(line)["id"] for line in after.splitlines()]
    assert ["truncated or replaced" in note for note in folder.notes()] == [True]
    assert folder.counts.replaced == 1


def test_another_file_of_the_same_name_is_another_file(folder, watched):
    path, other = watched / "a.jsonl", watched / ".new"
    path.write_text(row("a"))
    folder.poll()
    other.write_text(row("a"))
    other.rename(path)
    assert ids(folder.poll()) == ["a"]
    assert folder.counts.replaced == 1


def test_a_restart_goes_on_where_it_was_and_an_unremembered_poll_comes_again(folder, watched, tmp_path):
    path = watched / "a.csv"
    path.write_text("id,label\na,7\n")
    folder.poll()
    folder.remember()
    with path.open("a") as file:
        file.write("b,7\n")
    again = Folder(watched, tmp_path / "memory", Wanted())
    assert ids(again.poll()) == ["b"]
    assert ids(Folder(watched, tmp_path / "memory", Wanted()).poll()) == ["b"]


def test_a_memory_that_is_damaged_costs_a_second_reading_and_no_label(folder, watched, tmp_path):
    (watched / "a.jsonl").write_text(row("a"))
    (tmp_path / "memory").write_text("{")
    again = Folder(watched, tmp_path / "memory", Wanted())
    assert ids(again.poll()) == ["a"]
    assert "read again" in again.notes()[0]


def test_what_is_wrong_with_one_file_is_said_once_and_not_in_the_way_of_the_others(folder, watched, tmp_path):
    import os

    (watched / "a.jsonl").write_bytes(row("a").encode() + b"\xff\n" + row("b").encode())
    (watched / "b.jsonl").write_text(row("c") + "x" * (MAX_LINE + 10))
    (watched / "c.json").write_text(studio(task(None, annotation("7"))))
    (watched / "d.txt").write_text("nothing that we know\n")
    (watched / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (watched / "sub").mkdir()
    os.mkfifo(watched / "pipe")
    for name in (".hidden", "a.tmp", "a.jsonl~"):
        (watched / name).write_text(row("never"))
    (watched / "z.jsonl").write_text(row("z"))
    assert ids(folder.poll()) == ["a", "b", "c", "z"]
    notes = folder.notes()
    for words in (
        "a.jsonl: line 2: byte 1 is not UTF-8",
        "b.jsonl: line 2: more than",
        "c.json: no task has",
        "d.txt: line 1",
    ):
        assert sum(words in note for note in notes) == 1, words
    assert len(notes) == 4
    assert folder.poll() == []
    assert folder.notes() == []
    assert folder.counts.skipped == {"unreadable": 1}
    assert folder.counts.refused_files == 3


def test_a_file_that_vanishes_is_forgotten_and_a_folder_that_does_is_spoken_of(folder, watched):
    (watched / "a.jsonl").write_text(row("a") + "{")
    folder.poll()
    (watched / "a.jsonl").unlink()
    assert folder.poll() == []
    assert folder.counts.vanished == 1
    watched.rmdir()
    assert folder.poll() == []
    assert [
        "it is gone" in folder_note or "cannot be looked into" in folder_note
        for folder_note in folder.notes()
    ] == [
        True,
        True,
    ]


def test_a_poll_gives_no_more_than_it_may_and_a_long_file_does_not_starve_the_rest(folder, watched):
    (watched / "a.jsonl").write_text("".join(row(f"a{number}") for number in range(50)))
    (watched / "b.jsonl").write_text(row("b"))
    first, second = folder.poll(10), folder.poll(10)
    assert len(first) == len(second) == 10
    assert "b" in ids(second)
    got = [*first, *second]
    while folder.more:
        got += folder.poll(10)
    assert len(set(ids(got))) == len(got) == 51
