"""Ray Serve: two deployments of one ONNX model, and a third that sends 5 % to the second. Port in PORT, model in MODEL."""

import os
import random
import signal

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0.2})
class Onnx:
    def __init__(self, file: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def infer(self, body: dict) -> dict:
        tensor = body["inputs"][0]
        x = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        (y,) = self.session.run(None, {"x": x})
        output = {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": list(y.shape),
            "data": y.ravel().tolist(),
        }
        return {"model_name": "bench", "outputs": [output]}


@serve.deployment(ray_actor_options={"num_cpus": 0.2})
class Split:
    def __init__(self, live, candidate) -> None:
        self.versions = (live, candidate)

    async def __call__(self, request: Request):
        body = await request.json()
        return await self.versions[random.random() < 0.05].infer.remote(body)


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"]), "access_log": False})
    file = os.environ["MODEL"]
    live, candidate = (Onnx.options(name=name).bind(file) for name in ("live", "candidate"))
    serve.run(Split.bind(live, candidate), route_prefix="/v2/models/bench/infer")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
