"""BentoML with one ONNX model. Model in MODEL."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Bench:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api(route="/v2/models/bench/infer")
    def infer(self, inputs: list[dict]) -> dict:
        tensor = inputs[0]
        x = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        (y,) = self.session.run(None, {"x": x})
        output = {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": list(y.shape),
            "data": y.ravel().tolist(),
        }
        return {"model_name": "bench", "outputs": [output]}
