"""The chapters that are played with faults: each begins in a state that an earlier chapter left, starts a controller on it, and asks
for a verb or two. Nothing in them waits for evidence: steps are held at once, and a person passes them on.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from deployctl.controller.labels import MEMORY

NAME = "m"
MODELS = ("1", "2", "3")
KEY = "x-user-id"
LABELLED = tuple(f"r{number}" for number in range(20))


@dataclass(frozen=True)
class Chapter:
    """What is asked for, from where on. `after` names the chapter whose end is its beginning."""

    name: str
    after: str | None
    play: Callable
    manifest: str = "canary"
    """That of `up`."""
    recover: bool = False
    spoil: Callable | None = None
    """What has become of the home meanwhile."""
    from_folder: tuple[str, ...] = ()
    """Labels that are read from the watched folder in this chapter, into the records of a rollout that runs."""


def _up(_play):
    """The controller's start is all there is."""


def _start(strategy):
    def play(play):
        play.start(strategy)
        play.wait_for_hold(0)

    return play


def _start_shadow(strategy, phase="progressing"):
    def play(play):
        play.start(strategy)
        play.wait_for_phase(phase)

    return play


def _climb(play):
    play.ask(12)
    play.promote()
    play.wait_for_hold(1)
    play.ask(12)


def _promote(play):
    play.promote()


def _promote_in_full(play):
    play.ask(6)
    play.promote(full=True, reason="by hand")


def _roll_back(play):
    play.roll_back()


def _roll_back_while_asked(play):
    play.ask(12)
    play.roll_back(reason="it smells")


def _go_to_1(play):
    play.roll_back(to="1")


def _pause_and_resume(play):
    play.pause()
    play.ask(6)
    play.resume()


def _post_labels(play):
    answered = play.ask(6)
    play.label(answered)
    play.ask(3)


def _read_folder(play):
    play.wait_for_label_files()
    play.ask(3)


def _forget_label_files(home):
    (home.path / MEMORY).unlink()


def _tear_last_record(home):
    data = home.journal.read_bytes()
    home.journal.write_bytes(data[: len(data) - 40])


def _spoil_last_record(home):
    data = bytearray(home.journal.read_bytes())
    data[-20] ^= 1
    home.journal.write_bytes(data)


CHAPTERS = (
    Chapter("up", None, _up),
    Chapter("canary begins", "up", _start("canary")),
    Chapter("canary climbs", "canary begins", _climb),
    Chapter("canary is promoted", "canary climbs", _promote),
    Chapter("rollback after promotion", "canary is promoted", _roll_back),
    Chapter("rollback in mid-ramp", "canary begins", _roll_back_while_asked),
    Chapter("promoted in full", "canary begins", _promote_in_full),
    Chapter("paused and resumed", "canary begins", _pause_and_resume),
    Chapter("next canary after a rollback", "rollback in mid-ramp", _start("next")),
    Chapter("next canary after a promotion", "canary is promoted", _start("following")),
    Chapter("rollback to a version", "canary is promoted", _go_to_1),
    Chapter("blue-green begins", "up", _start("blue-green")),
    Chapter("blue-green switches", "blue-green begins", _climb),
    Chapter("blue-green switches back", "blue-green switches", _roll_back_while_asked),
    Chapter("blue-green is promoted", "blue-green switches", _promote),
    Chapter("shadow begins", "up", _start_shadow("shadow")),
    Chapter("shadow is ended", "shadow begins", _roll_back_while_asked),
    Chapter("shadow retires", "up", _start_shadow("short shadow", "retired")),
    Chapter("shadow is promoted", "shadow retires", _promote_in_full),
    Chapter("labels are posted", "shadow begins", _post_labels),
    Chapter("labels in a folder", "up", _start_shadow("folder"), manifest="folder"),
    Chapter(
        "labels are read again",
        "labels in a folder",
        _read_folder,
        manifest="folder",
        spoil=_forget_label_files,
        from_folder=LABELLED,
    ),
    Chapter("torn journal", "canary climbs", _roll_back, spoil=_tear_last_record),
    Chapter("damaged journal", "canary climbs", _up, recover=True, spoil=_spoil_last_record),
)


def write_manifests(folder):
    """Models and manifests as a user has them; gives where the manifest of each name is."""
    labels = folder / "labels"
    labels.mkdir()
    rows = [json.dumps({"id": one, "label": "7"}) for one in LABELLED]
    (labels / "a.jsonl").write_text("\n".join(rows) + "\n")
    for label in MODELS:
        (folder / f"{label}.onnx").write_bytes(b"model of version " + label.encode() + bytes(300))
    held = {"minDwell": "0s", "bake": "0s", "stepTimeout": "50ms", "onInconclusive": "hold"}
    canary = {"canary": {"steps": [20, 50], **held}}
    switch = {"mirror": 0, "autoPromotion": False, "stepTimeout": "50ms", "onInconclusive": "hold"}
    labelled = ({"name": "error-rate", "margin": "5%"}, {"name": "label-error-rate", "margin": "5%"})
    specs = {
        "canary": _spec("1", "2", canary),
        "next": _spec("1", "3", canary),
        "following": _spec("2", "3", canary),
        "blue-green": _spec("1", "2", {"blueGreen": {**switch, "bake": {"duration": "1ms"}}}),
        "shadow": _spec("1", "2", {"shadow": {"maxDuration": "72h"}}, labelled),
        "short shadow": _spec("1", "2", {"shadow": {"maxDuration": "10ms"}}),
        "folder": _spec("1", "2", {"shadow": {}}, labelled, labels={"watch": str(labels)}),
    }
    for name, spec in specs.items():
        document = {"apiVersion": "deployctl/v1", "kind": "Rollout", "metadata": {"name": NAME}, "spec": spec}
        (folder / f"{name}.yaml").write_text(json.dumps(document, indent=1))  # JSON is YAML


def _spec(baseline, candidate, strategy, metrics=({"name": "error-rate", "margin": "5%"},), **more):
    return {
        "service": {"listen": "127.0.0.1:0", "model": NAME, "timeout": "2s", "routingKey": f"header:{KEY}"},
        "prediction": {"output": "y", "read": "text"},
        "baseline": {"version": baseline, "uri": f"{baseline}.onnx"},
        "candidate": {"version": candidate, "uri": f"{candidate}.onnx"},
        "strategy": strategy,
        "analysis": {"metrics": list(metrics)},
    } | more
