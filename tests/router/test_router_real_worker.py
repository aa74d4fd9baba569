"""The router in front of the real worker, asked by a real client with its defaults."""

import numpy as np
import onnx
import pytest
from real_worker import RealWorker, model


@pytest.fixture
def street(make_street):
    return make_street(worker=RealWorker)


def test_tritonclient_with_its_defaults_is_answered_by_the_version_that_the_split_says(street):
    import tritonclient.http as triton

    x = np.arange(6, dtype="f4").reshape(2, 3)
    asked = triton.InferInput("x", [2, 3], "FP32")
    with triton.InferenceServerClient(street.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.get_model_metadata("m")["platform"] == "onnx_onnxv1"
        for weight, version in ((0, "1"), (100, "2")):
            street.split(weight)
            for binary in (True, False):
                asked.set_data_from_numpy(x, binary_data=binary)
                for compression in (None, "gzip", "deflate"):
                    answer = client.infer(
                        "m",
                        [asked],
                        request_id=f"{version}-{binary}-{compression}",
                        request_compression_algorithm=compression,
                        response_compression_algorithm=compression,
                    )
                    assert np.array_equal(answer.as_numpy("y"), x + float(version))
                    assert answer.get_response()["model_version"] == version
                    assert answer.get_response()["id"] == f"{version}-{binary}-{compression}"
        with pytest.raises(triton.InferenceServerException, match="no version '9'"):
            client.infer("m", [asked], model_version="9")
    last = street.controller.outcome_of("2-False-deflate")
    assert (last.arm, last.status) == (1, 200)


def test_a_request_that_the_model_cannot_take_is_400_and_recorded_so(street):
    answer = street.infer(b'{"inputs": []}', x_request_id="bad")
    assert answer.status == 400
    assert street.controller.outcome_of("bad").status == 400


def test_the_model_that_is_used_is_a_sound_one():
    onnx.checker.check_model(model(1.0))
