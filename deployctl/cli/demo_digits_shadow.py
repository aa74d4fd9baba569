"""The digits in shadow: copies of the requests are answered by a better version, which passes, and by one that fails at once."""

from __future__ import annotations

from deployctl.cli.demo import Stage
from deployctl.cli.demo_switch import Scene, act, run_scenes
from deployctl.errors import Exit

PASSES, FAILS = "manifests/digits-shadow-v2.yaml", "manifests/digits-shadow-v3.yaml"


def run_digits_shadow_demo(*, as_json: bool) -> int:
    """Runs the demo. 0 when all went as it should, else 1 with what went wrong.

    Raises InvalidError without scikit-learn, UnavailableError without its files.
    """
    return run_scenes((PASSES, FAILS), _play, as_json=as_json)


def _play(stage: Stage, scenes: list[Scene]) -> None:
    stage.tell(
        "Real handwritten digits with human labels. A shadow answers copies of the requests, and nobody gets its answers;"
    )
    stage.tell("it is compared with version 1 on the very same digits, and with what people say they are.")
    stage.start_service(PASSES)
    stage.start_traffic()
    stage.wait_for_baseline("1")
    stage.tell("\n── better: version 2 reads more digits right than version 1")
    act(stage, scenes, ("shadow", PASSES), Exit.DONE, live="1")
    stage.tell("\n── broken: version 3 raises or answers NaN on real digits, and no caller sees it")
    act(stage, scenes, ("shadow", FAILS), Exit.ROLLED_BACK, live="1")
