"""FastAPI + onnxruntime as a careful user writes it: dictionaries in and out, one thread of onnxruntime. Model in MODEL."""

import os

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from onnx_model import infer as inferred
from onnx_model import loaded

session = loaded(os.environ["MODEL"])
app = FastAPI()


@app.post("/v2/models/bench/infer")
async def infer(body: dict) -> JSONResponse:
    return JSONResponse(inferred(session, body["inputs"][0]))
