"""Models in buckets, on real file systems of fsspec: one in memory, and one on top of it that breaks off and changes under the reader."""

import hashlib
import importlib.util
import random
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deployctl.errors import IntegrityError, InvalidError, UnavailableError
from deployctl.sources import MODEL_SOURCES
from deployctl.sources.fetch import Patience, fetched
from deployctl.sources.objects import Objects

HASTE = Patience(first=0.001, longest=0.002)
MODEL = random.Random(7).randbytes(3_000_000)
OTHER = random.Random(8).randbytes(3_000_000)
DIGEST = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"


class ShakyFileSystem(MemoryFileSystem):
    """Every file that is opened takes the next of `faults`: after how many bytes which error comes, or what is to happen."""

    protocol = "shaky"
    faults: ClassVar = []
    positions: ClassVar = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("shaky://", "memory://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if mode == "rb" and self.faults:
            after, error = self.faults.pop(0)
            return ShakyFile(file, after, error)
        return file


class ShakyFile:
    def __init__(self, file, after, error):
        self._file, self._left, self._error = file, after, error

    def seek(self, position):
        ShakyFileSystem.positions.append(position)
        self._file.seek(position)

    def read(self, size):
        if self._left <= 0:
            if callable(self._error):
                self._error()
                self._left = 2**60
            else:
                raise self._error
        self._left -= size
        return self._file.read(size)

    def close(self):
        pass


@pytest.fixture
def sources():
    fsspec.register_implementation("shaky", ShakyFileSystem, clobber=True)
    ShakyFileSystem.faults.clear()
    ShakyFileSystem.positions.clear()
    yield {scheme: Objects(scheme, "s3") for scheme in ("memory", "shaky")}
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def put(uri, data):
    scheme, _, path = uri.partition("://")
    fsspec.filesystem(scheme).pipe_file(path, data)


def get(cache, sources, uri, digest=None):
    return fetched(uri, digest, cache, sources, patience=HASTE)


def test_an_object_comes_into_the_cache_by_its_digest(cache, sources):
    put("memory://bucket/models/v2.onnx", MODEL)
    found = get(cache, sources, "memory://bucket/models/v2.onnx")
    assert (found.digest, found.path.read_bytes()) == (DIGEST, MODEL)
    assert found.resolved == "memory://bucket/models/v2.onnx"


def test_other_bytes_than_the_digest_names_are_refused(cache, sources):
    put("memory://bucket/v2.onnx", OTHER)
    with pytest.raises(IntegrityError, match="its bytes are"):
        get(cache, sources, "memory://bucket/v2.onnx", DIGEST)


def test_what_broke_off_is_taken_up_where_it_broke(cache, sources):
    put("shaky://bucket/v2.onnx", MODEL)
    ShakyFileSystem.faults += [(1 << 20, ConnectionResetError("reset by peer"))] * 2
    assert get(cache, sources, "shaky://bucket/v2.onnx").path.read_bytes() == MODEL
    assert ShakyFileSystem.positions == [0, 1 << 20]


def test_an_object_that_is_replaced_while_it_is_read_is_never_mixed(cache, sources):
    put("shaky://bucket/v2.onnx", OTHER)
    ShakyFileSystem.faults += [(1 << 20, lambda: put("shaky://bucket/v2.onnx", MODEL))]
    assert get(cache, sources, "shaky://bucket/v2.onnx").digest == DIGEST


def test_what_broke_off_of_another_object_is_not_used(cache, sources):
    put("shaky://bucket/v2.onnx", OTHER)

    def replaced():
        put("shaky://bucket/v2.onnx", MODEL)
        raise ConnectionResetError

    ShakyFileSystem.faults += [(1 << 20, replaced)]
    assert get(cache, sources, "shaky://bucket/v2.onnx").digest == DIGEST


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            PermissionError("Access\nDenied"),
            UnavailableError,
            "not let in: Access Denied; see the credentials",
        ),
        (
            RuntimeError("Unable to locate credentials"),
            UnavailableError,
            "Unable to locate credentials; see the",
        ),
        (TimeoutError("timed out"), UnavailableError, "cannot be fetched: timed out"),
    ],
)
def test_what_the_library_raises_is_one_line(cache, sources, error, kind, words):
    put("shaky://bucket/v2.onnx", MODEL)
    ShakyFileSystem.faults += [(0, error)] * 9
    with pytest.raises(kind, match=words) as caught:
        get(cache, sources, "shaky://bucket/v2.onnx")
    assert "\n" not in str(caught.value)


def test_what_is_not_there_or_is_a_folder_is_one_line(cache, sources):
    put("memory://bucket/models/v2.onnx", MODEL)
    for uri in ("memory://bucket/v3.onnx", "memory://bucket/models"):
        with pytest.raises(InvalidError, match="there is no such object"):
            get(cache, sources, uri)


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_without_its_extra_it_says_what_to_install(cache, scheme, library):
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    with pytest.raises(InvalidError, match=rf"pip install 'deployctl\[{scheme}\]'") as caught:
        get(cache, MODEL_SOURCES, f"{scheme}://bucket/v2.onnx")
    assert "\n" not in str(caught.value)
