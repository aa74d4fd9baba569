"""KServe's Python server with one ONNX model. Port in PORT, model in MODEL."""

import os

from kserve import InferOutput, InferResponse, Model, ModelServer
from onnx_model import loaded


class Onnx(Model):
    def load(self) -> bool:
        self.session = loaded(os.environ["MODEL"])
        self.ready = True
        return True

    def predict(self, payload, headers=None):
        (y,) = self.session.run(None, {"x": payload.inputs[0].as_numpy().astype("float32")})
        output = InferOutput("probabilities", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=False)
        return InferResponse(payload.id or "1", "bench", [output])


if __name__ == "__main__":
    model = Onnx("bench")
    model.load()
    ModelServer(
        http_port=int(os.environ["PORT"]), enable_grpc=False, workers=1, access_log_format=None
    ).start([model])
