"""The router in front of the real worker, asked by a real client with its defaults."""

import asyncio
import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from real_worker import RealWorker, model

from benchmarks.dataplane import stacks


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


def test_tritonclient_is_served_from_asyncio_too(street):
    import tritonclient.http.aio as triton

    x = np.arange(6, dtype="f4").reshape(2, 3)

    async def ask():
        async with triton.InferenceServerClient(street.url.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("m")
            assert (await client.get_model_metadata("m"))["inputs"][0]["name"] == "x"
            for binary in (True, False):
                asked, wanted = (
                    triton.InferInput("x", [2, 3], "FP32"),
                    triton.InferRequestedOutput("y", binary_data=binary),
                )
                asked.set_data_from_numpy(x, binary_data=binary)
                for outputs in (None, [wanted]):
                    answers = await asyncio.gather(
                        *(client.infer("m", [asked], outputs=outputs) for _ in range(20))
                    )
                    assert all(np.array_equal(answer.as_numpy("y"), x + 1) for answer in answers)
            with pytest.raises(triton.InferenceServerException, match="no model 'other'"):
                await client.infer("other", [asked])

    asyncio.run(ask())


CLIENT_OF_KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(url):
    client = InferenceRESTClient(config=RESTConfig(protocol="v2", retries=0))
    said = {"live": await client.is_server_live(url), "ready": await client.is_server_ready(url)}
    said["model"] = await client.is_model_ready(url, "m")
    x = np.arange(6, dtype="f4").reshape(2, 3)
    for binary in (False, True):
        asked = InferInput("x", [2, 3], "FP32")
        asked.set_data_from_numpy(x, binary_data=binary)
        request = InferRequest("m", [asked], request_id="of kserve")
        answer = await client.infer(url, request, model_name="m")
        said["binary" if binary else "json"] = [answer.id, answer.outputs[0].as_numpy().tolist()]
    try:
        await client.infer(url, InferRequest("other", [asked]), model_name="other")
    except Exception as error:
        said["error"] = str(error)
    print(json.dumps(said))

asyncio.run(main(sys.argv[1]))
"""


def test_the_client_of_kserve_is_served(street, request):
    """In an environment of its own, for it brings a hundred packages: with `--long`, or where the benchmark has installed it."""
    python = Path(__file__).parents[2] / ".bench" / "kserve" / "bin" / "python"
    if not python.exists():
        if not request.config.getoption("--long"):
            pytest.skip("kserve is not in .bench; `--long` installs it")
        stacks.install("kserve")
    ran = subprocess.run(
        [python, "-c", CLIENT_OF_KSERVE, street.url], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["live"] is said["ready"] is said["model"] is True
    expected = ["of kserve", (np.arange(6, dtype="f4").reshape(2, 3) + 1).tolist()]
    assert said["json"] == said["binary"] == expected
    assert "no model 'other'" in said["error"]


def test_a_request_that_the_model_cannot_take_is_400_and_recorded_so(street):
    answer = street.infer(b'{"inputs": []}', x_request_id="bad")
    assert answer.status == 400
    assert street.controller.outcome_of("bad").status == 400


def test_the_model_that_is_used_is_a_sound_one():
    onnx.checker.check_model(model(1.0))
