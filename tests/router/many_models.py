"""Every model of a folder behind a socket of its own, in one process: the worker's own code, for more models than there can be processes.

python many_models.py FOLDER: for `a.onnx` listens on `a.sock`; says {name: null, or why it is refused} in one line.
"""

import asyncio
import hashlib
import json
import sys
from pathlib import Path

import uvloop

from deployctl.errors import DeployctlError
from deployctl.serving.model import Model
from deployctl.serving.prediction import Reader
from deployctl.serving.settings import Settings
from deployctl.serving.worker import Server, Worker, listen


async def serve(folder):
    said, servers = {}, []
    for file in sorted(folder.glob("*.onnx")):
        digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        try:
            model = Model(file, digest)
        except DeployctlError as error:
            said[file.stem] = str(error).removeprefix(f"{file}: ")
            continue
        worker = Worker(Settings("m", file.stem, digest, str(file)), model, Reader(None, model.outputs, {}))
        servers.append(Server(worker))
        await servers[-1].start(listen(file.with_suffix(".sock")))
        said[file.stem] = None
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
