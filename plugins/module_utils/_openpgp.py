# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of OpenPGP public keys, so that a repository's key is known before any tool of the host trusts it.

Reads RFC 4880 and RFC 9580 framing only as far as a file of public keys needs it; no gnupg on the host is asked.
Private to the collection.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence

_BEGIN = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"
_BLOCK = re.compile(_BEGIN + rb"(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.S)
_PUBLIC_KEY = 6
_SECRET_KEYS = frozenset({5, 7})
# Signatures, trust, user ids, subkeys and attributes, marker and padding: what else a public key may come with.
_COMPANIONS = frozenset({2, 10, 12, 13, 14, 17, 21})


class OpenPgpError(Exception):
    """One line that says what is wrong with a key."""


def is_armored(data: bytes) -> bool:
    return _BEGIN in data


def dearmor(data: bytes) -> bytes:
    """The packets themselves, of every block of an armored file; what is not armored is returned as it is."""
    if not is_armored(data):
        return data
    packets = b""
    for block in _BLOCK.findall(data):
        # Headers end at an empty line, the checksum is a line that begins with an equals sign.
        lines = [line.strip() for line in block.splitlines()]
        body = lines[lines.index(b"", 1) + 1 :] if b"" in lines[1:] else lines
        text = b"".join(line for line in body if not line.startswith(b"=") and b":" not in line)
        try:
            packets += base64.b64decode(text, validate=True)
        except binascii.Error as exc:
            raise OpenPgpError("damaged armor: %s" % exc) from exc
    if not packets:
        raise OpenPgpError("an armored block without end or content")
    return packets


def armor(data: bytes) -> bytes:
    """Armored as `rpm --import` and apt's *.asc want it."""
    if is_armored(data):
        return data if data.endswith(b"\n") else data + b"\n"
    encoded = base64.b64encode(data).decode("ascii")
    lines = [encoded[place : place + 64] for place in range(0, len(encoded), 64)]
    checksum = base64.b64encode(_crc24(data).to_bytes(3, "big")).decode("ascii")
    return "\n".join([
        "-----BEGIN PGP PUBLIC KEY BLOCK-----", "", *lines, "=" + checksum, "-----END PGP PUBLIC KEY BLOCK-----", "",
    ]).encode("ascii")  # fmt: skip


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _bit in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc & 0xFFFFFF


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each packet."""
    place = 0
    while place < len(data):
        first = data[place]
        if not first & 0x80:
            raise OpenPgpError("no OpenPGP data at byte %d" % place)
        try:
            if first & 0x40:
                tag, place, size = first & 0x3F, *_new_length(data, place + 1)
            else:
                tag, place, size = (first >> 2) & 0x0F, *_old_length(data, place + 1, first & 3)
        except IndexError:
            raise OpenPgpError("cut off at byte %d" % place) from None
        if place + size > len(data):
            raise OpenPgpError("cut off: a packet of %d bytes, and %d are left" % (size, len(data) - place))
        yield tag, data[place : place + size]
        place += size


def _new_length(data: bytes, place: int) -> tuple[int, int]:
    first = data[place]
    if first < 192:
        return place + 1, first
    if first < 224:
        return place + 2, ((first - 192) << 8) + data[place + 1] + 192
    if first < 255:
        raise OpenPgpError("a packet of unknown length")
    return place + 5, _number(data, place + 1, 4)


def _old_length(data: bytes, place: int, kind: int) -> tuple[int, int]:
    if kind == 3:
        raise OpenPgpError("a packet of unknown length")
    size = 1 << kind
    return place + size, _number(data, place, size)


def _number(data: bytes, place: int, size: int) -> int:
    if place + size > len(data):
        raise IndexError
    return int.from_bytes(data[place : place + size], "big")


def fingerprint(body: bytes) -> str:
    """Of one public key packet."""
    version = body[0] if body else 0
    if version == 4:
        # The fingerprint of a version 4 key is SHA-1 by definition.
        return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()
    if version == 6:
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise OpenPgpError("a key of version %d, known are 4 and 6" % version)


def fingerprints(data: bytes) -> list[str]:
    """Of every primary key in the file. Anything but public keys in it is an error."""
    found: list[str] = []
    for tag, body in packets(dearmor(data)):
        if tag == _PUBLIC_KEY:
            found.append(fingerprint(body))
        elif tag in _SECRET_KEYS:
            raise OpenPgpError("a secret key")
        elif tag not in _COMPANIONS:
            raise OpenPgpError("a packet of kind %d, which is no part of a public key" % tag)
    if not found:
        raise OpenPgpError("no key at all")
    return found


def plain(text: str) -> str:
    """A fingerprint as it is compared."""
    return re.sub(r"[\s:]", "", text).upper().removeprefix("0X")


def judge(data: bytes, wanted: Sequence[str], source: str) -> list[str]:
    """The fingerprints of the file, every one of them wanted; OpenPgpError otherwise."""
    pinned = [plain(each) for each in wanted]
    for each in pinned:
        if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", each):
            raise OpenPgpError("'%s' is no fingerprint: 40 or 64 hexadecimal digits are wanted" % each)
    try:
        found = fingerprints(data)
    except OpenPgpError as exc:
        raise OpenPgpError(
            "%s holds %s; wanted is the key %s: see what the URL answers, a proxy or a login page for example"
            % (source, exc, " or ".join(pinned))
        ) from exc
    foreign = [each for each in found if each not in pinned]
    if foreign:
        raise OpenPgpError(
            "%s holds the key %s, wanted is %s: nothing was kept; when the publisher has changed the key, confirm that"
            " from a second source and set the new fingerprint" % (source, ", ".join(foreign), " or ".join(pinned))
        )
    return found
