"""MLServer's way to serve an ONNX model: a runtime of one's own."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_model import loaded


class Onnx(MLModel):
    async def load(self) -> bool:
        self.session = loaded(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        (y,) = self.session.run(None, {"x": x})
        output = NumpyCodec.encode_output("probabilities", y)
        return InferenceResponse(model_name=self.name, outputs=[output])
