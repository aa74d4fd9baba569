"""docs/output.schema.json is whole: every verb has its documents, and a key more or less is noticed."""

import json
import math
import re
import sys

import jsonschema_rs
import pytest
import typer
from output_schema import COMMANDS, SCHEMA, Command, hold, hold_document

from deployctl.cli.app import app
from deployctl.views.console import show_document

DRAFT_7 = {
    "$schema", "$ref", "$defs", "title", "description", "type", "enum", "const", "anyOf", "properties", "required", "additionalProperties",
    "items", "minItems", "maxItems", "minimum", "maximum", "pattern", "format",
}  # fmt: skip
STOPPED = {"schema_version": 1, "service": "digits", "changed": True}


def schemas(node=SCHEMA):
    """Every schema of the document, with those inside it."""
    yield node
    for key in ("properties", "$defs"):
        for one in node.get(key, {}).values():
            yield from schemas(one)
    inside = [*node.get("anyOf", ()), node.get("items"), node.get("additionalProperties")]
    for one in inside:
        if isinstance(one, dict):
            yield from schemas(one)


def verbs(group, before=()):
    if isinstance(group, typer.core.TyperGroup):
        for name, command in group.commands.items():
            yield from verbs(command, (*before, name))
    else:
        yield " ".join(before), group


def test_every_verb_says_what_it_prints_as_json():
    there = dict(verbs(typer.main.get_command(app)))
    assert set(there) == set(COMMANDS)
    for verb, command in there.items():
        assert "output" in {parameter.name for parameter in command.params}, verb


def test_every_document_is_defined_and_carries_the_version_of_the_schema():
    documents = {name for names in COMMANDS.values() for name in names} | {"error"}
    assert {one["$ref"] for one in SCHEMA["anyOf"]} == {f"#/$defs/{name}" for name in documents}
    for name in documents:
        assert "schema_version" in SCHEMA["$defs"][name]["required"], name


def test_every_definition_is_used():
    text = json.dumps(SCHEMA)
    assert [name for name in SCHEMA["$defs"] if f'"#/$defs/{name}"' not in text] == []


def test_the_schema_means_the_same_to_a_reader_of_draft_7():
    jsonschema_rs.meta.validate(SCHEMA)
    jsonschema_rs.meta.validate({**SCHEMA, "$schema": "http://json-schema.org/draft-07/schema#"})
    assert {key for one in schemas() for key in one} - DRAFT_7 == {"x-commands"}
    for one in schemas():
        assert "$ref" not in one or len(one) == 1, "draft 7 passes over what stands beside it"


def test_every_object_whose_keys_are_ours_is_closed_and_every_key_is_in_snake_case():
    for one in schemas():
        if "properties" in one:
            assert one["additionalProperties"] is False, one.get("description")
            assert set(one["required"]) <= set(one["properties"])
            assert not [key for key in one["properties"] if not re.fullmatch(r"[a-z][a-z0-9_]*", key)]


@pytest.mark.parametrize(
    "wrong",
    [STOPPED | {"more": 1}, {"schema_version": 1, "service": "digits"}, STOPPED | {"schema_version": 2}, STOPPED | {"changed": "yes"}],
)  # fmt: skip
def test_a_document_that_has_drifted_is_noticed(wrong):
    hold_document(STOPPED, "down")
    with pytest.raises(AssertionError, match="down"):
        hold_document(wrong, "down")
    with pytest.raises(AssertionError, match="down"):
        hold(["down", "digits", "-o", "json"], json.dumps(wrong) + "\n")
    printing = [sys.executable, "-c", f"print('{json.dumps(wrong)}')"]
    with Command(["down", "-o", "json"], printing) as process, pytest.raises(AssertionError, match="down"):
        process.stdout.readline()
    hold(["down", "digits"], "digits: stopped\n")


def test_a_time_that_is_no_rfc_3339_is_noticed():
    (wall,) = (one for one in schemas() if one.get("format"))
    assert wall["format"] == "date-time"
    at = jsonschema_rs.validator_for(wall, validate_formats=True)
    assert at.is_valid("2026-01-01T12:00:01.250Z")
    assert not at.is_valid("2026-01-01 12:00")
    assert not at.is_valid("")


def test_what_is_no_json_and_what_has_colour_is_noticed():
    for line in ('{"schema_version": NaN}', '{"error": "\x1b[1m"}'):
        with pytest.raises(AssertionError):
            hold(["down", "-o", "json"], line + "\n")


def test_infinity_is_printed_as_null(capsys):
    show_document({"never": math.inf, "in": [{"it": math.nan}, (1.5,)]})
    assert json.loads(capsys.readouterr().out) == {"never": None, "in": [{"it": None}, [1.5]]}
