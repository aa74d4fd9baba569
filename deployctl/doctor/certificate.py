"""When a certificate holds: just so much of X.509 (RFC 5280, section 4.1) as that takes, read from its DER bytes."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


class Validity(NamedTuple):
    """From when to when, in UTC."""

    begins: datetime
    ends: datetime


def validity(pem: str) -> Validity:
    """Of the first certificate of a file, which is the server's own. Raises ValueError for what is none."""
    begin = pem.index(_BEGIN)
    der = ssl.PEM_cert_to_DER_cert(pem[begin : pem.index(_END, begin) + len(_END)])
    certificate = next(_values(der))
    fields = [one for one in _values(next(_values(certificate[1]))[1]) if one[0] != _VERSION]
    _serial, _algorithm, _issuer, both, *_ = fields
    if both[0] != _SEQUENCE:
        raise ValueError("no validity where it should be")
    begins, ends = (_time(*one) for one in _values(both[1]))
    return Validity(begins, ends)


def _values(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Each value (X.690, section 8.1): its tag and its contents."""
    at = 0
    while at < len(der):
        if at + 2 > len(der):
            raise ValueError("it is cut off")
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            more = length & 0x7F
            length, at = int.from_bytes(der[at : at + more], "big"), at + more
        if at + length > len(der):
            raise ValueError("it is cut off")
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, text: bytes) -> datetime:
    digits = text.decode("ascii")
    if tag == _UTC_TIME:  # years from 1950 on
        digits = f"{'19' if digits[:2] >= '50' else '20'}{digits}"
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time where it should be")
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
