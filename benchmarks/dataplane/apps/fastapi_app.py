"""FastAPI + onnxruntime as a careful user writes it: dictionaries in and out, one thread of onnxruntime. Model in MODEL."""

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI
from fastapi.responses import JSONResponse

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.get("/v2/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/v2/models/bench/infer")
async def infer(body: dict) -> JSONResponse:
    tensor = body["inputs"][0]
    x = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
    (y,) = session.run(None, {"x": x})
    output = {"name": "probabilities", "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}
    return JSONResponse({"model_name": "bench", "outputs": [output]})
