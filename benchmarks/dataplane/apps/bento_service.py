"""BentoML with one ONNX model. Model in MODEL."""

import os

import bentoml
from onnx_model import infer, loaded


@bentoml.service(workers=1)
class Bench:
    def __init__(self) -> None:
        self.session = loaded(os.environ["MODEL"])

    @bentoml.api(route="/v2/models/bench/infer")
    def infer(self, inputs: list[dict]) -> dict:
        return infer(self.session, inputs[0])
