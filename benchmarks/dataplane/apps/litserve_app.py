"""LitServe with one ONNX model. Port in PORT, model in MODEL."""

import os

import litserve
from onnx_model import answer, input_of, loaded


class Onnx(litserve.LitAPI):
    def setup(self, device):
        self.session = loaded(os.environ["MODEL"])

    def decode_request(self, request):
        return input_of(request["inputs"][0])

    def predict(self, x):
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, y):
        return answer(y)


if __name__ == "__main__":
    api = Onnx(api_path="/v2/models/bench/infer")
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=int(os.environ["PORT"]),
        host="127.0.0.1",
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
    )
