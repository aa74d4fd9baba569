"""The phone inspection's pictures, models, inspectors and line: what its README claims of them must be so."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parent.parent
PHONES = ROOT / "examples" / "phone-inspection"
MANIFESTS = {name: ROOT / "manifests" / f"phones-{name}.yaml" for name in ("shadow", "canary")}
MEASURED_ON = 600  # pictures: a share of 0.96 is known to within 0.016 (two deviations)

sys.path[:0] = [str(PHONES), str(ROOT / "tests" / "service")]  # scripts beside one another, as they are run

import inspectors  # noqa: E402 - found only now
import line  # noqa: E402 - found only now
import phones  # noqa: E402 - found only now
import training  # noqa: E402 - found only now
from service_rig import Box  # noqa: E402 - found only now


@pytest.fixture(scope="module")
def sets():
    """Phones in normal and in dim light that no model was trained on."""
    return {
        light: phones.draw((9_000, int(light)), MEASURED_ON, light) for light in (phones.NORMAL, phones.DIM)
    }


@pytest.fixture(scope="module")
def judged(sets):
    """Probabilities by (version, light)."""
    return {
        (version, light): session_of(version).run(None, {"image": seen.pictures})[0]
        for version in ("v1", "v2")
        for light, seen in sets.items()
    }


@pytest.fixture(scope="module")
def asked():
    """What every inspector says of every phone, and which are scratched, by light."""
    seen = {light: phones.draw((9_002, 0), 700, light) for light in (phones.NORMAL, phones.DIM)}
    return {light: (inspectors.ask_all(1, drawn), drawn.scratched) for light, drawn in seen.items()}


def session_of(version: str):
    from onnxruntime import InferenceSession

    return InferenceSession(PHONES / "models" / f"{version}.onnx", providers=["CPUExecutionProvider"])


def share_right(judged, sets, version: str, light: float) -> float:
    return float((judged[version, light].argmax(1) == sets[light].scratched).mean())


class TestPictures:
    def test_the_same_seed_draws_the_same_phones_and_another_seed_others(self):
        first, again, other = phones.draw(5, 8), phones.draw(5, 8), phones.draw(6, 8)
        assert np.array_equal(first.pictures, again.pictures)
        assert np.array_equal(first.scratched, again.scratched)
        assert not np.array_equal(first.pictures, other.pictures)

    def test_pictures_have_the_models_shape_and_range(self):
        drawn = phones.draw(5, 8, phones.DIM)
        assert (drawn.pictures.shape, drawn.pictures.dtype) == ((8, 1, 64, 64), np.float32)
        assert drawn.pictures.min() >= 0
        assert drawn.pictures.max() <= 1

    def test_light_changes_the_picture_and_not_the_phone(self):
        normal, dim = phones.draw(5, 40, phones.NORMAL), phones.draw(5, 40, phones.DIM)
        assert np.array_equal(normal.scratched, dim.scratched)
        assert np.array_equal(normal.visibility, dim.visibility)
        assert dim.pictures.mean() < 0.5 * normal.pictures.mean()
        assert dim.pictures.std((1, 2, 3)).max() < normal.pictures.std((1, 2, 3)).min()

    def test_only_scratched_phones_have_something_to_see_of_a_scratch(self):
        drawn = phones.draw(5, 200, scratched=0.3)
        assert np.array_equal(drawn.visibility > 0, drawn.scratched)
        assert 0.2 < drawn.scratched.mean() < 0.4

    def test_a_contact_sheet_is_a_png_with_every_picture_in_it(self, tmp_path):
        import struct
        import zlib

        sheet = phones.contact_sheet([phones.draw(1, 3), phones.draw(2, 3)])
        phones.write_png(tmp_path / "sheet.png", sheet)
        content = (tmp_path / "sheet.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", content[16:24]) == (3 * 68, 2 * 68)
        size = struct.unpack(">I", content[33:37])[0]
        lines = np.frombuffer(zlib.decompress(content[41 : 41 + size]), np.uint8).reshape(136, 205)
        assert np.array_equal(lines[:, 1:], sheet)


class TestModels:
    @pytest.mark.parametrize("version", ["v1", "v2"])
    def test_both_versions_have_one_signature_and_stand_a_warm_up_on_zeros(self, version):
        session = session_of(version)
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.type, taken.shape) == ("image", "tensor(float)", ["batch", 1, 64, 64])
        assert (given.name, given.type, given.shape) == ("probabilities", "tensor(float)", ["batch", 2])
        assert np.isfinite(session.run(None, {"image": np.zeros((3, 1, 64, 64), np.float32)})[0]).all()

    def test_in_normal_light_both_are_good(self, judged, sets):
        assert 0.93 <= share_right(judged, sets, "v1", phones.NORMAL) <= 0.99
        assert 0.94 <= share_right(judged, sets, "v2", phones.NORMAL) <= 0.995

    def test_in_dim_light_version_1_fails_and_version_2_does_not(self, judged, sets):
        assert 0.6 <= share_right(judged, sets, "v1", phones.DIM) <= 0.8
        assert share_right(judged, sets, "v2", phones.DIM) >= 0.83

    def test_in_dim_light_version_1_misses_scratches_and_seldom_invents_any(self, judged, sets):
        said, scratched = judged["v1", phones.DIM].argmax(1), sets[phones.DIM].scratched
        assert said[scratched].mean() < 0.6
        assert said[~scratched].mean() < 0.1

    @pytest.mark.parametrize("version", ["v1", "v2"])
    def test_the_graph_answers_what_the_numpy_network_answers(self, version, judged, sets):
        import onnx

        stored = onnx.load(PHONES / "models" / f"{version}.onnx")
        weights = training.weights_in(stored)
        for light, seen in sets.items():
            ours = training.probabilities(weights, seen.pictures[:100])
            assert np.abs(ours - judged[version, light][:100]).max() < 1e-4
        assert training.onnx_model(weights).SerializeToString(deterministic=True) == stored.SerializeToString(
            deterministic=True
        )

    @pytest.mark.parametrize("version", ["v1", "v2"])
    def test_a_model_is_small_and_made_of_real_convolutions(self, version):
        import onnx

        path = PHONES / "models" / f"{version}.onnx"
        assert path.stat().st_size < 300_000
        operations = {node.op_type for node in onnx.load(path).graph.node}
        assert {"Conv", "Relu", "MaxPool", "Gemm", "Softmax"} <= operations

    def test_the_slopes_that_training_follows_are_those_of_the_loss(self):
        # Central differences in double precision: the chain rule by hand is where a mistake would hide.
        weights = training.fresh_weights(np.random.default_rng(1))
        drawn = phones.draw(3, 4)
        lines = training.lines_in(weights, drawn.pictures).astype(np.float64)
        weights = {name: value.astype(np.float64) for name, value in weights.items()}
        truth = drawn.scratched.astype(np.int64)

        def loss() -> float:
            return float(-np.log(training._forward(weights, lines)[0][np.arange(4), truth]).mean())

        slopes = training._slopes(weights, lines, truth)
        rng = np.random.default_rng(2)
        for name, slope in slopes.items():
            for at in rng.integers(0, slope.size, 5):
                kept = weights[name].flat[at]
                weights[name].flat[at] = kept + 1e-6
                above = loss()
                weights[name].flat[at] = kept - 1e-6
                below = loss()
                weights[name].flat[at] = kept
                assert slope.flat[at] == pytest.approx((above - below) / 2e-6, abs=2e-5), name

    def test_training_learns(self):
        before = training.fresh_weights(np.random.default_rng((training.TRAINED, 0)))
        after = training.train(training.Recipe(pictures=500, epochs=3, darkest=phones.NORMAL))
        unseen = phones.draw((9_001, 0), 300)
        assert training.accuracy(after, unseen) > max(0.75, training.accuracy(before, unseen) + 0.1)


class TestInspectors:
    @staticmethod
    def right(labels, scratched):
        return float((np.array(labels) == np.where(scratched, "scratched", "ok")).mean())

    def test_each_is_about_95_percent_right_and_less_in_dim_light(self, asked):
        for name in asked[phones.NORMAL][0]:
            normal, dim = (self.right(labels[name], truth) for labels, truth in asked.values())
            assert 0.935 <= normal <= 0.98
            assert dim < normal - 0.02

    def test_two_agree_on_92_to_96_percent(self, asked):
        labels = asked[phones.NORMAL][0].values()
        pairs = [
            np.mean(np.array(one) == np.array(other)) for one, other in itertools.combinations(labels, 2)
        ]
        assert min(pairs) > 0.915
        assert max(pairs) < 0.965

    def test_some_phones_are_seen_by_nobody_and_some_by_three(self):
        drawn = phones.draw(3, 700)
        seen_by = np.zeros(700, int)
        for opinion in inspectors.opinions(4, drawn):
            seen_by[opinion.phone] += not opinion.corrects
        shares = np.bincount(seen_by, minlength=4) / 700
        assert np.abs(shares - inspectors.LOOKED_AT_BY).max() < 0.06

    def test_labels_come_1_to_20_seconds_late_and_out_of_order(self):
        said = [each for each in inspectors.opinions(4, phones.draw(3, 150)) if not each.corrects]
        late = [each.late for each in said]
        assert 0.6 < min(late) < max(late) <= 20
        assert late != sorted(late)
        assert max(each.late for each in inspectors.opinions(4, phones.draw(3, 150), hurry=10)) <= 3.0

    def test_a_few_labels_are_corrected_later_by_whoever_gave_them(self):
        first: dict[tuple[int, str], inspectors.Opinion] = {}
        corrections = 0
        for opinion in inspectors.opinions(4, phones.draw(3, 700)):
            who = (opinion.phone, opinion.annotator)
            if opinion.corrects:
                corrections += 1
                assert opinion.late > first[who].late
                assert opinion.label != first[who].label
            first.setdefault(who, opinion)
        assert 0.003 < corrections / len(first) < 0.03


class TestManifests:
    @pytest.mark.parametrize("name", MANIFESTS)
    def test_the_digests_are_those_of_the_committed_files(self, name):
        spec = yaml.safe_load(MANIFESTS[name].read_text())["spec"]
        for role in {"baseline", "candidate"} & spec.keys():
            model = MANIFESTS[name].parent / spec[role]["uri"]
            assert spec[role]["digest"] == f"sha256:{hashlib.sha256(model.read_bytes()).hexdigest()}"

    def test_the_service_is_the_same_in_both_of_them(self):
        services = [yaml.safe_load(path.read_text())["spec"]["service"] for path in MANIFESTS.values()]
        assert services[0] == services[1]

    def test_the_loader_accepts_the_canary(self):
        from deployctl.core.metrics import METRICS
        from deployctl.manifest.load import load

        path = MANIFESTS["canary"]
        assert load(
            path.read_bytes(), str(path), engines=("builtin",), metrics=tuple(METRICS), base=path.parent
        )


class TestLine:
    def test_the_same_shift_sends_the_same_phones_at_the_same_times(self):
        shift = line.Shift(rate=100, seconds=0.5, seed=3)
        first, again = list(line.stream(shift)), list(line.stream(shift))
        assert first == again
        assert 20 < len(first) < 90
        assert [each.at for each in first] == sorted(each.at for each in first)

    def test_the_light_dims_when_it_is_told_to_and_stays_dim(self):
        arrivals = list(line.stream(line.Shift(rate=20, seconds=9, light_dims_at=3)))
        assert {each.light for each in arrivals if each.at < 3} == {phones.NORMAL}
        assert {each.light for each in arrivals if each.at > 3 + line.FADING} == {phones.DIM}

    def test_an_answer_without_outputs_is_left_to_people(self):
        assert line.prediction_in({"outputs": [], "parameters": {"decision": "human"}}) is None
        tally = line.Tally()
        arrival = next(line.stream(line.Shift()))
        tally.add(arrival, {"outputs": [], "parameters": {"decision": "human"}})
        assert tally.document()["answers"] == {"people": {"left to people, normal light": 1}}

    def test_a_service_that_is_not_there_is_counted_and_survived(self):
        ran = run_line("http://127.0.0.1:9", "--rate", "50", "--seconds", "0.5", "--hurry", "100")
        assert ran["sent"] == ran["by_status"][line.NO_ANSWER] > 0
        assert ran["labels"]["failed"] > 0

    def test_a_real_service_answers_every_phone_and_takes_every_label(self, tmp_path):
        manifest = yaml.safe_load(MANIFESTS["canary"].read_text())
        manifest["metadata"]["name"] = "m"  # the box's
        manifest["spec"]["service"]["listen"] = "127.0.0.1:0"
        for role in ("baseline", "candidate"):
            manifest["spec"][role]["uri"] = str(
                (MANIFESTS["canary"].parent / manifest["spec"][role]["uri"]).resolve()
            )
        path = tmp_path / "phones.yaml"
        path.write_text(json.dumps(manifest))
        box = Box(tmp_path)
        try:
            box.up(path)
            ran = run_line(
                box.url, "--rate", "100", "--seconds", "3", "--light-dims-at", "-9", "--hurry", "20"
            )
        finally:
            box.close()
        assert ran["by_status"] == {"200": ran["sent"]}
        assert ran["sent"] > 50, "however little of the processor there is for it"
        said = ran["answers"]["1"]
        assert said["wrong, dim light"] > 0.1 * ran["sent"]
        assert sum(said.values()) == ran["sent"]
        assert ran["labels"]["accepted"] > ran["sent"]
        assert ran["labels"]["failed"] == ran["labels"]["left"] == 0


def run_line(url: str, *arguments: str) -> dict:
    ran = subprocess.run(
        [sys.executable, str(PHONES / "line.py"), "--url", url, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)
