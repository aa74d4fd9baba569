"""LitServe with one ONNX model. Port in PORT, model in MODEL."""

import os

import litserve
import numpy as np
import onnxruntime


class Onnx(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    def decode_request(self, request):
        tensor = request["inputs"][0]
        return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])

    def predict(self, x):
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, y):
        output = {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": list(y.shape),
            "data": y.ravel().tolist(),
        }
        return {"model_name": "bench", "outputs": [output]}


if __name__ == "__main__":
    api = Onnx(api_path="/v2/models/bench/infer")
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=int(os.environ["PORT"]),
        host="127.0.0.1",
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
    )
