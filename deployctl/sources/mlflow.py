"""A model in an MLflow registry, over its REST API. The one rule: the registry's credentials are MLflow's own variables, and go to it alone.

`models:/NAME@ALIAS` and `models:/NAME/VERSION`; which file of a logged model is the ONNX one stands in its MLmodel file.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from deployctl.errors import InvalidError, UnavailableError
from deployctl.manifest.model_uri import Form
from deployctl.sources.source import INSIDE, Part, RemoteFile
from deployctl.sources.web import Access, WebFile, basic

API = "api/2.0"
MAX_ANSWER_BYTES = 1024 * 1024
"""Of an answer of the registry, and of an MLmodel file."""

SILENCE_SECONDS = 120.0
"""A registry copies an artifact out of its store before it sends the first byte of it."""

MLMODEL = "MLmodel"
URI = re.compile(
    r"models:/(?P<name>[^/:?#\x00-\x1f]{1,256})(@(?P<alias>[\w-]{1,255})|/(?P<version>[0-9]{1,9}))"
)


class Mlflow:
    """`models:/…` of the registry at MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI."""

    form = Form(URI.pattern, "models:/NAME@ALIAS or models:/NAME/3", needs_digest=False)

    def locate(self, uri: str) -> Artifact:
        """Asks which version that is, where its folder is, and which file in it is the model."""
        found = URI.fullmatch(uri)
        assert found is not None  # the loader has checked it
        registry = Registry.of_environment(uri)
        version = found["version"] or registry.version(found["name"], found["alias"])
        folder = registry.folder(found["name"], version)
        return Artifact(folder, _model_path(folder, uri))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a logged model."""

    folder: Folder
    path: str

    @property
    def key(self) -> str:
        return self.folder.file(self.path).key

    @property
    def shown(self) -> str:
        return self.folder.file(self.path).shown

    def read(self, start: int, validator: str | None) -> AbstractContextManager[Part]:
        """See RemoteFile."""
        return self.folder.file(self.path).read(start, validator)

    def beside(self, path: str) -> Artifact:
        return Artifact(self.folder, posixpath.join(posixpath.dirname(self.path), path))


class Folder(Protocol):
    """Where the files of a logged model are."""

    def file(self, path: str) -> WebFile: ...

    def sizes(self, directory: str = "") -> Mapping[str, int | None]:
        """The files in it, or in a directory of it, and how long they are; none where whoever has them lists nothing."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A server that knows models, and how it is spoken to; `asked_for` is the uri that its errors are about."""

    url: str
    access: Access
    asked_for: str

    @classmethod
    def of_environment(cls, asked_for: str) -> Registry:
        """As MLflow's own client finds it. Raises UnavailableError where none is named."""
        written = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI") or ""
        parts = _split(written)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UnavailableError(
                f"{asked_for}: no registry: set MLFLOW_TRACKING_URI to its address, http://… or https://…"
            )
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(parts.username or "")
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(parts.password or "")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN", "").strip()
        headers: Mapping[str, str] = {}
        if user and password:
            headers = basic(user, password)
        elif re.fullmatch(r"[\x21-\x7e]+", token):
            headers = {"Authorization": f"Bearer {token}"}
        elif token:
            raise UnavailableError("$MLFLOW_TRACKING_TOKEN holds what is no token; set it to the token alone")
        authority = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None
        host = parts.netloc.rpartition("@")[2]
        return cls(
            f"{parts.scheme}://{host}{parts.path.rstrip('/')}",
            Access(headers, authority, SILENCE_SECONDS),
            asked_for,
        )

    def version(self, name: str, alias: str) -> str:
        """The version that an alias means by now."""
        answer = self.ask("mlflow/registered-models/alias", name=name, alias=alias)
        version = _text(answer, "model_version", "version")
        if version is None or not re.fullmatch("[0-9]{1,9}", version):
            raise self.nonsense("says of no version that it has this alias")
        return version

    def folder(self, name: str, version: str) -> Folder:
        """The files of a version: from the registry's own artifact store, or from the one that it knows."""
        location = _text(
            self.ask("mlflow/model-versions/get-download-uri", name=name, version=version), "artifact_uri"
        )
        if location is None:
            raise self.nonsense("does not say where the files of that version are")
        parts = _split(location)
        title = f"models:/{name}/{version} at {self.url}"
        if parts.scheme != "mlflow-artifacts":
            return Served(self, name, version, title)
        host = urlsplit(self.url).netloc
        if parts.netloc not in {"", host}:
            raise UnavailableError(
                f"{self.asked_for}: its files are on {parts.netloc}, which is not the registry {host}; set MLFLOW_TRACKING_URI to that one"
            )
        return Proxied(self, parts.path.strip("/"), title)

    def ask(self, call: str, **query: str) -> dict[str, Any]:
        """The answer to a GET of the API, a JSON object."""
        url = f"{self.url}/{API}/{call}?{urlencode(query)}"
        text = _small(WebFile(url, self.access, f"{self.asked_for} at {self.url}"))
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise self.nonsense(
                "does not answer in JSON; is that the address of an MLflow server?"
            ) from error
        if not isinstance(answer, dict):
            raise self.nonsense("does not answer with an object")
        return answer

    def nonsense(self, what: str) -> UnavailableError:
        """What to raise for an answer that means nothing."""
        return UnavailableError(f"{self.asked_for}: {self.url} {what}; see MLFLOW_TRACKING_URI")


@dataclass(slots=True)
class Proxied:
    """A folder of artifacts that the tracking server gives out itself: as a stream without a length, but it lists how long each is."""

    registry: Registry
    root: str
    title: str
    _listed: dict[str, dict[str, int | None]] = field(default_factory=dict)

    def file(self, path: str) -> WebFile:
        directory, name = posixpath.split(path)
        whole = f"{self.root}/{path}"
        url = f"{self.registry.url}/{API}/mlflow-artifacts/artifacts/{quote(whole)}"
        length = self.sizes(directory).get(name)
        return WebFile(url, self.registry.access, f"{self.title}, {whole}", length)

    def sizes(self, directory: str = "") -> Mapping[str, int | None]:
        if directory not in self._listed:
            whole = f"{self.root}/{directory}" if directory else self.root
            files = self.registry.ask("mlflow-artifacts/artifacts", path=whole).get("files")
            self._listed[directory] = dict(map(_size, files if isinstance(files, list) else []))
        return self._listed[directory]


def _size(listed: object) -> tuple[str, int | None]:
    """A file of a listing and its length, which JSON may have as a text. A directory has none, and no model has the empty name."""
    one = listed if isinstance(listed, Mapping) else {}
    path, size = one.get("path"), str(one.get("file_size", ""))
    if not isinstance(path, str) or one.get("is_dir"):
        return "", None
    return path, int(size) if re.fullmatch("[0-9]{1,18}", size) else None


@dataclass(frozen=True, slots=True)
class Served:
    """The files of a version wherever its store is: the registry reads them for whoever asks. It lists nothing."""

    registry: Registry
    name: str
    version: str
    title: str

    def file(self, path: str) -> WebFile:
        query = urlencode({"name": self.name, "version": self.version, "path": path})
        url = f"{self.registry.url}/model-versions/get-artifact?{query}"
        return WebFile(url, self.registry.access, f"{self.title}, {path}")

    def sizes(self, directory: str = "") -> Mapping[str, int | None]:  # noqa: ARG002 - see Folder
        return {}


def _model_path(folder: Folder, asked_for: str) -> str:
    """The ONNX file of a folder: what its MLmodel file says, else the only one that there is."""
    files = [*folder.sizes()]
    if files and MLMODEL not in files:
        return _only_onnx_file(files, asked_for)
    text = _small(folder.file(MLMODEL))
    import yaml  # noqa: PLC0415 - only a registry needs it

    try:
        flavors = yaml.safe_load(text)["flavors"]
        names = ", ".join(map(str, flavors))
        written = flavors["onnx"]["data"] if "onnx" in flavors else None
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise InvalidError(f"{asked_for}: its MLmodel file cannot be read; log the model again") from error
    if written is None:
        raise InvalidError(
            f"{asked_for}: its flavors are {names}, and none is onnx; log it with mlflow.onnx.log_model"
        )
    if not isinstance(written, str) or not INSIDE.fullmatch(written):
        raise InvalidError(f"{asked_for}: its MLmodel file names no file of its folder; log the model again")
    return written


def _only_onnx_file(files: list[str], asked_for: str) -> str:
    found = [name for name in files if name.endswith(".onnx") and "/" not in name]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} ONNX files ({', '.join(sorted(found))})" if found else "no ONNX file"
    raise InvalidError(
        f"{asked_for}: there is no MLmodel file in it, and {what}; log it with mlflow.onnx.log_model"
    )


def _small(file: RemoteFile) -> bytes:
    """All of a file that is not large."""
    whole = b""
    with file.read(0, None) as part:
        for chunk in part.chunks:
            whole += chunk
            if len(whole) > MAX_ANSWER_BYTES:
                raise UnavailableError(
                    f"{file.shown}: more than {MAX_ANSWER_BYTES} bytes came where a short answer was expected"
                )
    return whole


def _split(written: str) -> SplitResult:
    """The parts of an address; none of what is no address."""
    try:
        return urlsplit(written)
    except ValueError:
        return urlsplit("")


def _text(answer: Mapping[str, Any], *keys: str) -> str | None:
    value: Any = answer
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) and value else None
