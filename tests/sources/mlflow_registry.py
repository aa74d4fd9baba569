"""A stand-in for an MLflow server: the calls of its REST API that a download needs, answered as MLflow's documentation and handlers say.

Not MLflow itself, which would bring a hundred packages: what it answers was written down from `registered-models/alias`,
`model-versions/get-download-uri`, `mlflow-artifacts/artifacts` (list and get) and `model-versions/get-artifact`, and held against a
server of MLflow 3.17.2.
"""

import json
from urllib.parse import parse_qs, unquote, urlsplit

from file_server import FileServer

MLMODEL = """\
artifact_path: model
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_session_options: null
    onnx_version: 1.22.0
    providers:
    - CUDAExecutionProvider
    - CPUExecutionProvider
  python_function:
    data: model.onnx
    env: {conda: conda.yaml, virtualenv: python_env.yaml}
    loader_module: mlflow.onnx
mlflow_version: 3.4.0
model_size_bytes: 512
run_id: 8a9c
utc_time_created: '2026-11-20 09:00:00.000000'
"""


class MlflowRegistry(FileServer):
    """`versions` by (name, number): where their folder is. `aliases` by (name, alias). `let_in` is the Authorization that is asked for.

    An artifact `streams`: it has no length, no ETag and no ranges, as MLflow had it for long; 3.17 has them all.
    """

    def __init__(self, certificate=None, *, streams=True):
        self.versions, self.aliases, self.let_in = {}, {}, None
        super().__init__(certificate, ranges=not streams, etags=not streams, lengths=not streams)

    def log(self, name, number, files, store="mlflow-artifacts:"):
        """A model version with these files; its folder is where MLflow would make one."""
        root = f"1/run{number}/artifacts/model"
        self.versions[name, str(number)] = f"{store}/{root}"
        for path, data in files.items():
            self.files[f"/api/2.0/mlflow-artifacts/artifacts/{root}/{path}"] = data

    def reply(self, seen):
        parts = urlsplit(seen.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self.let_in is not None and seen.headers.get("authorization") != self.let_in:
            return 401, "text/plain", b"You are not authenticated."
        call = unquote(parts.path).removeprefix("/api/2.0/")
        if call == "mlflow/registered-models/alias":
            number = self.aliases.get((query["name"], query["alias"]))
            if number is None:
                return self._refused(
                    400, "INVALID_PARAMETER_VALUE", f"Registered model alias {query['alias']} not found."
                )
            return self._json({"model_version": self._version(query["name"], str(number))})
        if call == "mlflow/model-versions/get-download-uri":
            location = self.versions.get((query["name"], query["version"]))
            if location is None:
                return self._missing(
                    f"Model Version (name={query['name']}, version={query['version']}) not found"
                )
            return self._json({"artifact_uri": location})
        if call == "mlflow-artifacts/artifacts":
            return self._json(self._listed(query.get("path", "")))
        if call == "/model-versions/get-artifact":
            root = self.versions[query["name"], query["version"]].partition("/1/")[2]
            data = self.files.get(f"/api/2.0/mlflow-artifacts/artifacts/1/{root}/{query['path']}")
            return self._missing("No such file") if data is None else (200, "application/octet-stream", data)
        return None

    def _version(self, name, number):
        return {
            "name": name,
            "version": number,
            "creation_timestamp": 1764000000000,
            "current_stage": "None",
            "source": self.versions.get((name, number), ""),
            "run_id": f"run{number}",
            "status": "READY",
            "aliases": [alias for (of, alias), at in self.aliases.items() if (of, str(at)) == (name, number)],
        }

    def _listed(self, folder):
        root = f"/api/2.0/mlflow-artifacts/artifacts/{folder}/"
        inside = [path.removeprefix(root) for path in self.files if path.startswith(root)]
        files = [
            {"path": path, "is_dir": False, "file_size": len(self.files[root + path])}
            for path in inside
            if "/" not in path
        ]
        return {"files": files} if files else {}

    @staticmethod
    def _json(document):
        return 200, "application/json", json.dumps(document).encode()

    def _missing(self, message):
        return self._refused(404, "RESOURCE_DOES_NOT_EXIST", message)

    @staticmethod
    def _refused(status, code, message):
        return status, "application/json", json.dumps({"error_code": code, "message": message}).encode()
