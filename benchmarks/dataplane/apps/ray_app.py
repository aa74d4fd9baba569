"""Ray Serve: two deployments of one ONNX model, and a third that sends 5 % to the second. Port in PORT, model in MODEL."""

import os
import random
import signal

import ray
from onnx_model import infer, loaded
from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0.2})
class Onnx:
    def __init__(self, file: str) -> None:
        self.session = loaded(file)

    def infer(self, body: dict) -> dict:
        return infer(self.session, body["inputs"][0])


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
