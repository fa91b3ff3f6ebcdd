"""SHA-256 of files and of values: streaming hashes and canonical JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

CHUNK: Final = 1 << 20
"""Bytes read at a time wherever a whole file is streamed."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as lower-case hex, read `CHUNK` bytes at a time."""
    sha = hashlib.sha256()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            sha.update(view[:n])
    return sha.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def value_sha256(value: Any) -> str:
    """Return the SHA-256 of a JSON value's canonical form as lower-case hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
