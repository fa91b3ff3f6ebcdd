"""URLs as texts: what is one, where it leads, and what of it may be shown.

Passwords and tokens stand in URLs: ``sftp://me:secret@host/lm.pt``, ``https://host/lm.pt?sig=...``.
They go to the library that opens the URL, and nowhere else: no message, record, log or name of a
file has them.
"""

import glob
import re
from pathlib import PurePosixPath
from typing import Final

from ckptshrink.errors import printable

_HTTP: Final = frozenset({"http", "https"})

_QUERY: Final = re.compile(r"[?#][A-Za-z0-9._~%+-]+=.*", re.DOTALL)
"""A query, and not the ``?`` of a glob or of a name in a bucket."""

_HTTP_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)

_ANY_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`]+")

_SHORTEST: Final = 3
"""Characters of a value that can be a secret; hiding shorter ones would garble every message."""

_LONGEST_NAME: Final = 255


def is_url(text: str) -> bool:
    """Return whether a text is a URL and no path.

    Examples
    --------
    >>> is_url("s3://bucket/lm.pt"), is_url("zoo/lm.pt")
    (True, False)
    """
    scheme, colon, _ = text.partition("://")
    return bool(colon) and scheme.replace("+", "").replace("-", "").isalnum()


def scheme_of(url: str) -> str:
    """Return the scheme of a URL.

    Examples
    --------
    >>> scheme_of("hf://someone/lm")
    'hf'
    """
    return url.partition("://")[0].lower()


def path_of(url: str) -> str:
    """Return where a URL leads, without its scheme, its query and whoever asks.

    Examples
    --------
    >>> path_of("hf://someone/lm/model.safetensors")
    'someone/lm/model.safetensors'
    >>> path_of("https://me:secret@host/lm.pt?token=secret")
    'host/lm.pt'
    """
    return _parts(url)[1].strip("/")


def shown(url: str) -> str:
    """Return a URL as it may be shown; a path as it is.

    Examples
    --------
    >>> shown("https://me:secret@host/lm.pt?token=secret")
    'https://host/lm.pt'
    """
    if not is_url(url):
        return printable(url)
    scheme = url.partition("://")[0]
    return printable(f"{scheme}://{_parts(url)[1]}")


def without_secrets(text: str) -> str:
    """Return a URL as it may be shown, and a path as it is, whatever is in it."""
    return shown(text) if is_url(text) else text


def scrubbed(text: str, url: str) -> str:
    """Return what a library says without the secrets of the URL that it was given.

    Examples
    --------
    >>> scrubbed("GET https://host/lm.pt?token=secret: 503", "https://host/lm.pt?token=secret")
    'GET https://host/lm.pt: 503'
    """
    text = _ANY_URL.sub(lambda found: _shown_within(found[0]), text)
    who, _, query = _parts(url)
    secrets = {who, who.partition(":")[2], query}
    secrets |= {part.partition("=")[2] for part in re.split("[?#&]", query)}
    for secret in sorted((s for s in secrets if len(s) >= _SHORTEST), key=len, reverse=True):
        text = text.replace(secret, "***")
    return printable(" ".join(text.split()))


def _shown_within(text: str) -> str:
    """Return a URL as it may be shown, with the punctuation that a sentence put after it."""
    url = text.rstrip(".,;:)")
    return shown(url) + text[len(url) :]


def has_glob(url: str) -> bool:
    """Return whether a URL is a glob; a query makes none of it.

    Examples
    --------
    >>> has_glob("s3://bucket/*.pt"), has_glob("https://host/lm.pt?download=true")
    (True, False)
    """
    return glob.has_magic(_parts(url)[1])


def is_below(url: str, folder: str) -> bool:
    """Return whether a URL leads into the folder that another one leads to.

    Examples
    --------
    >>> is_below("s3://b/out/lm.pt", "s3://b/out/"), is_below("s3://b/output/lm.pt", "s3://b/out")
    (True, False)
    """
    if scheme_of(url) != scheme_of(folder):
        return False
    return f"{path_of(url)}/".startswith(f"{path_of(folder)}/")


def is_plain(name: str) -> bool:
    """Return whether a name is that of a file in a folder, and leads nowhere else.

    Examples
    --------
    >>> [is_plain(name) for name in ("lm.pt", "a/lm.pt", "..", "")]
    [True, False, False, False]
    """
    nbytes = len(name.encode("utf-8", "surrogateescape"))
    return name not in {"", ".", ".."} and not set(name) & {"/", "\0"} and nbytes <= _LONGEST_NAME


def is_inside(name: str) -> bool:
    """Return whether a relative path stays in its folder.

    Examples
    --------
    >>> [is_inside(name) for name in ("a/lm.pt", "a/../../lm.pt", "/lm.pt", "a//b")]
    [True, False, False, False]
    """
    return str(PurePosixPath(name)) == name and all(map(is_plain, name.split("/")))


def _parts(url: str) -> tuple[str, str, str]:
    """Return who asks, where the URL leads and its query."""
    scheme, _, rest = url.partition("://")
    pattern = _HTTP_QUERY if scheme.lower() in _HTTP else _QUERY
    found = pattern.search(rest)
    query = found[0] if found is not None else ""
    rest = rest[: len(rest) - len(query)]
    head, slash, tail = rest.partition("/")
    who, at, host = head.rpartition("@")
    if at and ":" in who:
        return who, host + slash + tail, query
    _, colon, port = head.partition(":")
    if colon and not at and not port.isdigit() and "@" in tail:  # a slash in the password
        who, _, rest = rest.rpartition("@")
        return who, rest, query
    return "", rest, query
