"""docs/manifest.md from the published JSON Schema, with what `lint` says of a wrong value of each key. Written by nobody's hand.

python -m deployctl.cli.manifest_reference > docs/manifest.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

from deployctl.core.metrics import METRICS
from deployctl.core.outcome import Source
from deployctl.labels import LABEL_SOURCES
from deployctl.manifest.load import load
from deployctl.manifest.problems import ManifestError
from deployctl.manifest.quantities import DURATION_PATTERN, PERCENTAGE_PATTERN, SIZE_PATTERN
from deployctl.manifest.schema import json_schema
from deployctl.sources import SOURCE_FORMS
from deployctl.traffic import BACKENDS

HEAD = """\
# The manifest

<!-- made by `python -m deployctl.cli.manifest_reference > docs/manifest.md`: change deployctl/manifest/schema.py, not this page -->

Every key, made from the JSON Schema that stands beside the examples (`manifests/rollout.schema.json`) and that `deployctl init` writes beside
yours: with `# yaml-language-server: $schema=rollout.schema.json` as the first line an editor completes and checks the same keys.
`deployctl lint FILE` checks more, all of it at once, as `FILE:LINE:COLUMN: what`, and ends with 0 or 2; each table below is
followed by what it says of a wrong value. To start from a file and not from a table: `deployctl init`.

A *duration* is a number and a unit: `500ms`, `30s`, `10m`, `72h`. A *percentage* has its sign: `0.5%`. A *weight* is percent of the callers or
requests, with or without the sign: `5`, `12.5`, `5%`. A *size* is a number and `KiB`, `MiB`, `GiB` or `TiB`. A *path* starts at the manifest.
YAML is read as version 1.2 says (`no` is a text); a file has at most 256 KiB. Durations of a rollout are seconds in which a
controller watched: downtime and sleep do not count. The manifest in force is kept in the journal, so editing the file moves no running rollout.
"""

KINDS = {DURATION_PATTERN: "duration", PERCENTAGE_PATTERN: "percentage", SIZE_PATTERN: "size"}
WRONG = {
    "duration": "soon",
    "percentage": 5,
    "size": "2GB",
    "weight": 150,
    "true or false": "yes",
    "list": "all",
    "text": 1,
    "keys": "all",
}
"""A wrong value of each kind."""

WRONG_OF_KEY = {
    "listen": "8080",
    "name": "My Model",
    "model": "my model",
    "routingKey": "x-user-id",
    "digest": "sha256:12",
    "adjudicate": "loudest",
    "format": "xml",
    "classes": ["a", "a"],
    "url": "example.org/hook",
    "uri": "ftp://box/v1.onnx",
    "workerMemory": "1MiB",
}
"""Where another mistake is likelier."""

Sections = dict[str, list[str]]
"""Names of definitions, each with the paths at which it may stand."""


def page() -> str:
    """The whole page as Markdown."""
    schema = json_schema()
    pieces = [HEAD]
    for name, paths in _sections(schema).items():
        pieces.append("\n".join(_section(schema, name, paths)))
    pieces += ["\n".join(_metrics()), "\n".join(_rules())]
    return "\n".join(pieces)


def _sections(schema: dict[str, Any]) -> Sections:
    """Every definition in the order in which a reader of a manifest meets it."""
    found: Sections = {}

    def visit(name: str, path: str) -> None:
        found.setdefault(name, []).append(path)
        if len(found[name]) > 1:
            return
        for key, value in _keys(schema, name)["properties"].items():
            inside, item = value.get("$ref"), value.get("items", {}).get("$ref")
            if inside or item:
                visit((inside or item).rpartition("/")[2], f"{path}.{key}{'[]' if item else ''}".lstrip("."))

    visit("", "")
    return found


def _keys(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The object among what may stand for a section: a step may be a bare number, too."""
    here = schema["definitions"][name] if name else schema
    keys: dict[str, Any] = here.get("anyOf", [here])[-1]
    return keys


def _section(schema: dict[str, Any], name: str, paths: list[str]) -> Iterator[str]:
    here, keys = schema["definitions"][name] if name else schema, _keys(schema, name)
    yield f"## {'The file' if not name else f'`{paths[0]}`'}\n"
    also = f" The same keys stand in {' and '.join(f'`{path}`' for path in paths[1:])}." if paths[1:] else ""
    yield f"{_words(here)}{also}\n"
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for key, value in keys["properties"].items():
        default = "**required**" if key in keys.get("required", ()) else _default(value)
        yield f"| `{key}` | {_cell(_kind(value))} | {default} | {_cell(_meaning(schema, value))} |"
    yield ""
    found = [
        (f"{key}: {_shown(wrong)}", said)
        for key, value in keys["properties"].items()
        for wrong in _wrong(key, value)
        if (said := _said(paths[0], key, wrong))
    ]
    if found:
        yield from _table_of_mistakes(found)


def _table_of_mistakes(found: list[tuple[str, str]]) -> Iterator[str]:
    yield "| written | `lint` says |"
    yield "|---|---|"
    yield from (f"| `{_cell(written)}` | {_cell(said)} |" for written, said in found)
    yield ""


def _kind(value: dict[str, Any]) -> str:
    """What may be written, in a word or two."""
    if "$ref" in value:
        return "keys, see below"
    if "anyOf" in value:
        return "weight"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if value["type"] == "array":
        return "list of texts" if "$ref" not in value["items"] else "list, see below"
    if value["type"] in {"integer", "number"}:
        return _range(value)
    if value["type"] in {"boolean", "object"}:
        return {"boolean": "true or false", "object": "keys of your own, with texts"}[value["type"]]
    kind = KINDS.get(value.get("pattern", ""))
    examples = ", ".join(f"`{example}`" for example in value.get("examples", ()))
    return kind or (f"text, such as {examples}" if examples else "text")


def _range(value: dict[str, Any]) -> str:
    if "exclusiveMinimum" in value:
        return f"number between {value['exclusiveMinimum']} and {value['exclusiveMaximum']}"
    if "maximum" in value:
        return f"whole number, {value['minimum']} to {value['maximum']}"
    return f"whole number, {value['minimum']} or more"


def _default(value: dict[str, Any]) -> str:
    return f"`{_shown(value['default'])}`" if "default" in value else ""


def _meaning(schema: dict[str, Any], value: dict[str, Any]) -> str:
    inside = value.get("$ref") or value.get("items", {}).get("$ref")
    if "description" in value or not inside:
        return _words(value)
    return _words(schema["definitions"][inside.rpartition("/")[2]])


def _words(value: dict[str, Any]) -> str:
    return " ".join(value.get("description", "").split())


def _wrong(key: str, value: dict[str, Any]) -> Iterator[object]:
    """A wrong value of a key that is written in one word; none for one that has keys of its own."""
    kind = _kind(value)
    if "see below" in kind:
        return
    if key in WRONG_OF_KEY:
        yield WRONG_OF_KEY[key]
    elif "enum" in value or "const" in value:
        yield "other"
    elif value.get("type") in {"integer", "number"}:
        yield value.get("exclusiveMaximum", value.get("maximum", -2) + 1)
    else:
        yield WRONG[re.split(" of |,", kind)[0]]


def _said(section: str, key: str, wrong: object) -> str:
    """What lint says first of a manifest that is right but for this."""
    document = deepcopy(_manifest(section))
    place: Any = document
    parts = [*filter(None, section.split(".")), key]
    for part, inside in pairwise(parts):
        place = place.setdefault(part.removesuffix("[]"), {})
        if part.endswith("[]"):
            place = next((item for item in place if inside in item), place[0])
    place[key] = wrong
    found = _problems(document)
    return next((one for one in found if one.startswith((f"{key}:", f"unknown {key} "))), *found[:1])


def _problems(document: object) -> list[str]:
    try:
        load(
            json.dumps(document).encode(),
            "",
            engines=BACKENDS,
            metrics=METRICS,
            base=Path("/"),
            label_sources=LABEL_SOURCES,
            model_sources=SOURCE_FORMS,
        )
    except ManifestError as error:
        return [problem.message for problem in error.problems]
    return []


def _manifest(section: str = "") -> dict[str, Any]:
    """A manifest that is right and has this section."""
    strategy: dict[str, Any] = {
        "canary": {
            "steps": [
                {"mirror": {}},
                {"setWeight": 5},
                {"pause": {}},
                {"ramp": {"from": 10, "to": 50, "by": 20}},
            ],
            "holdback": {"weight": 5, "duration": "30m"},
        }
    }
    for name, keys in (("shadow", {}), ("blueGreen", {"autoPromotion": False})):
        if f".{name}" in section or (name == "shadow" and "candidates" in section):
            strategy = {name: keys}
    model = {"version": "2", "uri": "v2.onnx"}
    several = "candidates" in section
    return {
        "apiVersion": "deployctl/v1",
        "kind": "Rollout",
        "metadata": {"name": "digits"},
        "spec": {
            "service": {"listen": "127.0.0.1:8080", "tls": {"cert": "box.crt", "key": "box.key"}},
            "baseline": {"version": "1", "uri": "v1.onnx"},
            **({"candidates": [model]} if several else {"candidate": model}),
            "prediction": {"output": "probabilities"},
            "strategy": strategy,
            "analysis": {
                "metrics": [{"name": "error-rate"}],
                "webhooks": [
                    {"name": "sign-off", "type": "confirm-promotion", "url": "http://127.0.0.1/ask"}
                ],
            },
        },
    }


def _metrics() -> Iterator[str]:
    sources = {
        Source.OUTCOME: "every answer",
        Source.LABEL: "answers that people labelled",
        Source.PAIR: "copies that both versions answered",
    }
    yield "## The metrics\n"
    yield "Each is a share of bad ones, and the candidate's is compared with the baseline's over the same time. *Absolute* ones compare nothing:"
    yield "`max` is their limit. How it is judged: [verdict.md](verdict.md). A metric of your own is a function and a line: `CONTRIBUTING.md`.\n"
    yield "| name | bad is | seen on | |"
    yield "|---|---|---|---|"
    for metric in METRICS.values():
        limit = "absolute" if metric.bound is not None or metric.source is Source.PAIR else ""
        yield f"| `{metric.name}` | {metric.bad} | {sources[metric.source]} | {limit} |"
    yield ""


def _rules() -> Iterator[str]:
    yield "## What does not go together\n"
    yield "`lint` says so of keys that are each right:\n"
    yield from _table_of_mistakes([(written, _said_of(changes)) for written, changes in TOGETHER.items()])


def _said_of(changes: dict[str, object]) -> str:
    """What lint says first of the right manifest after these changes; a key with `None` goes."""
    document = _manifest(next((key for key in changes if ".shadow" in key or ".blueGreen" in key), ""))
    for path, value in changes.items():
        place: Any = document["spec"]
        *outer, last = path.split(".")
        for key in outer:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return next(iter(_problems(document)), "")


TOGETHER: dict[str, dict[str, object]] = {
    "no metrics beside a strategy": {"analysis.metrics": []},
    "steps: [5, 25, 10]": {"strategy.canary.steps": [5, 25, 10]},
    "steps: [100]": {"strategy.canary.steps": [100]},
    "steps: [{pause: {}}, 5]": {"strategy.canary.steps": [{"pause": {}}, 5]},
    "steps: [5, {mirror: {}}]": {"strategy.canary.steps": [5, {"mirror": {}}]},
    "a canary without baseline": {"baseline": None},
    "candidates beside candidate": {"candidates": [{"version": "3", "uri": "v3.onnx"}]},
    "both versions called 1": {"candidate.version": "1"},
    "null-rate without prediction": {"prediction": None, "analysis.metrics": [{"name": "null-rate"}]},
    "{name: latency-p99}": {"analysis.metrics": [{"name": "error-rate"}, {"name": "latency-p99"}]},
    "only {name: latency-p99, max: 500ms}": {"analysis.metrics": [{"name": "latency-p99", "max": "500ms"}]},
    "{name: null-rate, max: 1%} in a canary": {
        "analysis.metrics": [{"name": "error-rate"}, {"name": "null-rate", "max": "1%"}]
    },
    "disagreement-rate without copies": {
        "strategy.canary.steps": [5],
        "analysis.metrics": [{"name": "error-rate"}, {"name": "disagreement-rate", "max": "5%"}],
    },
    "read: text with confidenceBelow": {
        "prediction.read": "text",
        "prediction.nullIf": {"confidenceBelow": 0.5},
    },
    "maxBatchDelay as long as timeout": {"service.timeout": "1s", "service.maxBatchDelay": "1s"},
    "autoPromotion: true, mirror: 0": {
        "strategy.blueGreen": {"autoPromotion": True, "mirror": 0},
    },
    "a key of Argo Rollouts": {"strategy.canary.steps": [{"setMirrorRoute": {}}]},
    "holdback: {weigth: 5, …}": {"strategy.canary.holdback": {"weight": 5, "weigth": 5, "duration": "30m"}},
}
"""Mistakes between keys, and how the right manifest has to change to make each."""


def _shown(value: object) -> str:
    return re.sub(r"\A\"(?!yes\")([^\"]*[a-zA-Z][^\"]*)\"\Z", r"\1", json.dumps(value))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
