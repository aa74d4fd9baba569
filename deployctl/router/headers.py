"""What the headers of a request say, and the refusal of one that cannot be taken; nothing here reads a body."""

from __future__ import annotations

from urllib.parse import quote

from deployctl.wire.frames import NO_BINARY, Encoding

CODINGS = {Encoding.GZIP: b"gzip", Encoding.DEFLATE: b"deflate"}
_ENCODINGS = {
    b"": Encoding.IDENTITY,
    b"identity": Encoding.IDENTITY,
    b"gzip": Encoding.GZIP,
    b"x-gzip": Encoding.GZIP,
    b"deflate": Encoding.DEFLATE,
}
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


class Refusal(Exception):  # noqa: N818 - a 4xx or 503 of the router's own, not a fault
    """A request that is not taken; it belongs to no version and leaves no outcome."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def text_of(value: bytes | None) -> str:
    """A header as text; an absent one is empty."""
    if not value:
        return ""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def id_line(request_id: str) -> bytes:
    """The id as a header: a body may have brought any character."""
    if not (request_id.isascii() and request_id.isprintable()):
        request_id = quote(request_id, safe=_PRINTABLE, errors="replace")
    return b"x-request-id: %b\r\n" % request_id.encode()


def encoding_of(name: bytes | None) -> Encoding:
    """Content-Encoding of a request. Raises Refusal for one that is not known."""
    encoding = _ENCODINGS.get(name.lower()) if name else Encoding.IDENTITY
    if encoding is None:
        raise Refusal(415, "Content-Encoding may be gzip or deflate")
    return encoding


def json_length_of(value: bytes | None, size: int, encoding: Encoding) -> int:
    """Inference-Header-Content-Length: of the bytes before compression, so only the worker can check it then.

    Raises Refusal for what can be no length.
    """
    if value is None:
        return NO_BINARY
    if not (value.isdigit() and len(value) < 10):
        raise Refusal(400, "Inference-Header-Content-Length is a number of bytes")
    length = int(value)
    if encoding is Encoding.IDENTITY and length > size:
        raise Refusal(400, f"Inference-Header-Content-Length {length} is more than the body has ({size})")
    return length


def accepted_coding(value: bytes | None) -> Encoding:
    """The first of gzip and deflate that the client takes; a weight of 0 means that it does not."""
    if not value:
        return Encoding.IDENTITY
    for item in value.lower().split(b","):
        name, _, weight = item.replace(b" ", b"").partition(b";q=")
        if name in _ENCODINGS and (weight.strip(b"0.") or not weight):
            return _ENCODINGS[name]
    return Encoding.IDENTITY
