"""What is answered where people decide: no model's answer, only that a person will give one, and the id for it.

The body is read for its `id` alone; what a worker would refuse for its framing is refused here, too.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from deployctl.core.plan import HUMAN
from deployctl.wire.coding import BadRequest, compress, decompress
from deployctl.wire.frames import NO_BINARY, Answer, Encoding


class _Head(msgspec.Struct):
    id: str | None = None


_head = msgspec.json.Decoder(_Head)


def answer(
    model: str, request_id: str, body: bytes, json_length: int, encoding: Encoding, accept: Encoding
) -> Answer:
    """The answer to one request, as a worker gives it; `request_id` is used where the body brings none."""
    try:
        request_id = _id_of(body, json_length, encoding) or request_id
    except BadRequest as error:
        refused = {"error": error.message, "model_version": HUMAN.version}
        return Answer(0, error.status, msgspec.json.encode(refused), request_id)
    document = {
        "model_name": model,
        "model_version": HUMAN.version,
        "id": request_id,
        "outputs": [],
        "parameters": {"decision": HUMAN.version},
    }
    return Answer(0, 200, compress(msgspec.json.encode(document), accept), request_id, encoding=accept)


def metadata(model: str) -> Answer:
    """What is known of the model where no version of it is loaded."""
    document = {"name": model, "versions": [HUMAN.version], "platform": "", "inputs": [], "outputs": []}
    return Answer(0, 200, msgspec.json.encode(document))


def _id_of(body: bytes, json_length: int, encoding: Encoding) -> str | None:
    if encoding is not Encoding.IDENTITY:
        body = decompress(body, encoding)
    if json_length == 0:
        return None  # a raw binary body, without a head
    if json_length != NO_BINARY:
        if json_length > len(body):
            raise BadRequest(400, f"Inference-Header-Content-Length {json_length} is more than the body has")
        body = body[:json_length]
    try:
        return _head.decode(body).id
    except msgspec.ValidationError as error:
        raise BadRequest(400, f"the request does not follow the protocol: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _lenient_id_of(body)
    except RecursionError as error:
        raise BadRequest(400, "the request is nested too deeply") from error


def _lenient_id_of(body: bytes) -> str | None:
    """Of a body with NaN or Infinity, which real clients send and the models' workers take."""
    try:
        document: Any = json.loads(body.decode())
        return msgspec.convert(document, _Head).id
    except msgspec.ValidationError as error:
        raise BadRequest(400, f"the request does not follow the protocol: {error}") from error
    except RecursionError as error:
        raise BadRequest(400, "the request is nested too deeply") from error
    except ValueError as error:  # also what is no UTF-8
        raise BadRequest(400, f"the request is no valid JSON: {error}") from error
