"""A worker that does what the body of a request says, so that tests can ask for a hang, a crash or an odd answer.

python stand_in_worker.py SOCKET VERSION; a body is JSON like {"do": "answer", "status": 200, …}, with "by": VERSION where only
that version is to do it.
"""

import asyncio
import json
import os
import sys
import time

import uvloop

from deployctl.wire.frames import NO_BINARY, Answer, FrameReader, Kind, Request, decode_request, encode_answer
from deployctl.wire.lifeline import die_with_parent


class Worker(asyncio.Protocol):
    def __init__(self, version):
        self.held = []
        self.version = version
        self.frames = FrameReader()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(b"".join(filter(None, map(self.answer, self.frames.feed(data)))))

    def answer(self, frame):  # noqa: C901 - a list of wishes
        request = decode_request(frame)
        if request.kind is Kind.METADATA:
            return self.say(request, {"name": "m", "version": self.version})
        if not request.body.startswith(b'{"do"'):
            return self.say(request, {"model_version": self.version, "length": len(request.body)})
        wish = json.loads(request.body)
        if wish.pop("by", self.version) != self.version:  # meant for another version
            wish = {"do": "answer"}
        match wish["do"]:
            case "hang":
                return None
            case "slow":
                asyncio.get_running_loop().call_later(
                    wish["seconds"], lambda: self.transport.write(self.say(request, {"slow": True}))
                )
                return None
            case "spin":  # of the time of a processor
                until = time.process_time() + wish["seconds"]
                while time.process_time() < until:
                    pass
                return self.say(request, {"spun": True})
            case "crash":
                os._exit(1)
            case "garbage":
                self.transport.write(b"\xff" * 64)
                return None
            case "hold":
                self.held.append(request)
                return None
            case "release":
                freed = b"".join(self.say(held, {"held": True}) for held in self.held)
                self.held.clear()
                return freed + self.say(request, {"released": True})
        return self.say(
            request, {"model_version": self.version}, **{k: v for k, v in wish.items() if k != "do"}
        )

    @staticmethod
    def say(
        request: Request,
        body,
        *,
        status=200,
        request_id=None,
        prediction="7",
        null=False,
        binary=0,
        size=0,
        confidence=0.5,
        late=0.0,
    ):
        encoded = json.dumps(body).encode() + b" " * size
        return encode_answer(
            Answer(
                stream=request.stream,
                status=status,
                body=encoded + bytes(binary),
                request_id=request_id or request.request_id,
                prediction=prediction,
                null=null,
                confidence=confidence,
                json_length=len(encoded) if binary else NO_BINARY,
                encoding=request.encoding,
            ),
            time.monotonic() + late,
        )


async def main(path, version):
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Worker(version), path)
    await server.serve_forever()


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(main(*sys.argv[1:]))
