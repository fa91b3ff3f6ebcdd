"""Files that an evaluation reads beside the model: plain ones, and JSON with one meaning only."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptshrink.errors import CheckpointError, EvaluationInputError
from ckptshrink.io.files import SourceFile


@contextmanager
def opened(path: Path) -> Iterator[SourceFile]:
    """Open a file to read from; a folder, a pipe or a device is refused and can't hang a run.

    Raises
    ------
    EvaluationInputError
        It can't be opened, is no plain file, or is cut short while it is read.
    """
    try:
        file = SourceFile(path)
        try:
            yield file
        finally:
            file.close()
    except CheckpointError as error:
        raise EvaluationInputError(error.message, path=path, hint=error.hint) from error
    except OSError as error:  # a disk or a network file system that fails in the middle
        raise EvaluationInputError(f"can't be read: {error.strerror}", path=path) from error


def read_whole(path: Path, most: int, what: str) -> bytes:
    """Return a file's content.

    Parameters
    ----------
    most : int
        Bytes above which it is not read.
    what : str
        What it should be, for the message: ``"a vocabulary"``.

    Raises
    ------
    EvaluationInputError
        As of `opened`, or it is larger.
    """
    with opened(path) as file:
        if file.size > most:
            raise EvaluationInputError(f"is too large for {what}", path=path)
        return file.read(0, file.size).tobytes()


def strict_json(data: bytes, *, nonfinite: bool = False) -> Any:
    r"""Return the value of a JSON text that has one meaning.

    Parameters
    ----------
    nonfinite : bool
        Whether ``NaN``, ``Infinity`` and ``-Infinity`` are numbers; JSON itself has none of them.

    Raises
    ------
    ValueError
        It is no JSON in UTF-8, is followed by something else, is nested deeper than can be read,
        has a key twice in one object, or text that is no Unicode. The message is one line.

    Examples
    --------
    >>> strict_json(b'{"accuracy": 0.5}')
    {'accuracy': 0.5}
    >>> strict_json(b'{"accuracy": 0.1, "accuracy": 0.9}')
    Traceback (most recent call last):
    ValueError: the key 'accuracy' is there twice
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=float if nonfinite else _refused,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is no UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if b"\\u" in data:  # half of a surrogate pair can come in by an escape only
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it holds half of a character (a lone surrogate)") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return found


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no finite number")
