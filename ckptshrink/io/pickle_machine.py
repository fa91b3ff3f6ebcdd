"""The stack machine of pickle without its dangerous parts: it makes records of names and calls."""

import codecs
import re
from collections.abc import Callable
from os import PathLike
from typing import Any, Final

from ckptshrink.errors import (
    CorruptCheckpointError,
    TruncatedPickleError,
    UnsafeCheckpointError,
)
from ckptshrink.io.pickle_records import Items, Made, Pairs, Persistent, Token, Value

MAX_BYTES: Final = 128 << 20
"""Bytes that one pickle may take. Weights lie beside it; it holds names, options, a vocabulary."""

MAX_OPS: Final = 2_000_000
"""Opcodes in one pickle: a vocabulary of 270,000 words, as list and as dict, takes 1.3 million."""

MAX_STACK: Final = 200_000
"""Values waiting on the stack. Picklers batch by 1,000, so that only deep nesting comes near."""

MAX_NOTED: Final = 300_000
"""Names, and calls, that a survey notes of one pickle."""

_MAX_DIGITS: Final = 1024
_HIGHEST_PROTOCOL: Final = 5


# The escapes of Python 2's repr() of a string. codecs.escape_decode warns of any other one.
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES: Final = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class Machine:
    """The pickle machine: a stack with marks, a memo, and a position in the bytes."""

    __slots__ = (
        "data", "made", "marks", "memo", "path", "persistent", "pos", "stack", "start", "tokens",
    )  # fmt: skip

    def __init__(self, data: bytes, start: int, path: str | PathLike[str] | None) -> None:
        self.data = data
        self.pos = self.start = start
        self.path = path
        self.stack: list[Value] = []
        self.marks: list[int] = []
        self.memo: dict[int, Value] = {}
        self.persistent: list[Persistent] = []
        # For a survey, every name and call, those that are dropped from the stack again too: an
        # unpickler would have made them by then.
        self.tokens: list[Token] | None = None
        self.made: list[Made] | None = None

    def check_limits(self) -> None:
        """Refuse a stack or a pickle that no checkpoint needs."""
        if len(self.stack) + len(self.marks) > MAX_STACK:
            raise self.unsafe("nested too deeply for a checkpoint")
        if self.pos - self.start > MAX_BYTES:
            raise self.unsafe(f"a pickle of more than {MAX_BYTES:,} bytes")

    # Errors have the position: it is what one looks up in a disassembly.

    def corrupt(self, message: str) -> CorruptCheckpointError:
        """Return an error about an opcode that does not fit."""
        return CorruptCheckpointError(self.placed(message), path=self.path)

    def unsafe(self, message: str) -> UnsafeCheckpointError:
        """Return an error about what the pickle asks for."""
        return UnsafeCheckpointError(self.placed(message), path=self.path)

    def placed(self, message: str) -> str:
        """Return a message with the position in the pickle, as a disassembly counts it."""
        return f"{message}, at byte {self.pos - self.start:,} of the pickle"

    def truncated(self) -> TruncatedPickleError:
        """Return an error about bytes that are not there."""
        return TruncatedPickleError(
            "ends inside its pickle", path=self.path, hint="fetch the file again"
        )

    # Arguments. A length is compared with the bytes there are before anything is made of it.

    def take(self, n: int) -> bytes:
        """Return the next bytes."""
        end = self.pos + n
        if end > len(self.data):
            raise self.truncated()
        chunk = self.data[self.pos : end]
        self.pos = end
        return chunk

    def uint(self, nbytes: int) -> int:
        """Return the next bytes as an unsigned number."""
        return int.from_bytes(self.take(nbytes), "little")

    def line(self) -> bytes:
        """Return the bytes up to the end of the line."""
        end = self.data.find(b"\n", self.pos)
        if end < 0:
            raise self.truncated()
        chunk = self.data[self.pos : end]
        self.pos = end + 1
        return chunk

    def utf8(self, data: bytes) -> str:
        """Return bytes as text, lone surrogates included."""
        try:
            return str(data, "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.corrupt("a string that is not UTF-8") from error

    def number(self, convert: Callable[[bytes], int | float], line: bytes) -> int | float:
        """Return the number that some text spells."""
        if len(line) > _MAX_DIGITS:  # int() takes quadratic time
            raise self.unsafe(f"a number of {len(line):,} digits")
        try:
            return convert(line)
        except ValueError as error:
            raise self.corrupt("a number that is none") from error

    # The stack. What lies under the last mark belongs to an outer object.

    def top(self) -> Value:
        """Return the value on top."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.corrupt("a pickle opcode with nothing on the stack")
        return self.stack[-1]

    def pop(self) -> Value:
        """Take the value from the top."""
        value = self.top()
        del self.stack[-1]
        return value

    def pop_to_mark(self) -> list[Value]:
        """Take the values above the last mark, and the mark."""
        if not self.marks:
            raise self.corrupt("a pickle opcode without its mark")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def pop_args(self) -> list[Value]:
        """Take a tuple of arguments."""
        args = self.pop()
        if not isinstance(args, Items) or args.kind != "tuple":
            raise self.corrupt("a call without a tuple of arguments")
        return args.items

    def pop_pairs(self) -> list[tuple[Value, Value]]:
        """Take keys and values above the last mark."""
        flat = self.pop_to_mark()
        if len(flat) % 2:
            raise self.corrupt("a key without a value")
        return list(zip(flat[::2], flat[1::2], strict=True))

    # What the opcodes do, where it takes more than a line.

    def drop(self) -> None:
        """Drop the top, be it a value or a mark."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def memoize(self, index: int) -> None:
        """Store the top under an index."""
        if index >= MAX_OPS:
            raise self.unsafe(f"memo index {index:,}")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        """Push what was stored under an index."""
        if index not in self.memo:
            raise self.corrupt(f"memo index {index:,} was never stored")
        self.stack.append(self.memo[index])

    def line_index(self) -> int:
        """Return the index that a line spells."""
        return int(self.number(int, self.line()))

    def integer_line(self) -> None:
        """Push the integer or the flag that a line spells."""
        line = self.line()
        flags = {b"00": False, b"01": True}  # protocols 0 and 1 have no opcode for a bool
        self.stack.append(flags[line] if line in flags else self.number(int, line))

    def long_bytes(self, n: int) -> None:
        """Push an integer of n bytes."""
        if n > _MAX_DIGITS:
            raise self.unsafe(f"an integer of {n:,} bytes")
        self.stack.append(int.from_bytes(self.take(n), "little", signed=True))

    def quoted_line(self) -> None:
        """Push a string of Python 2, quoted and escaped."""
        line = self.line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise self.corrupt("a string without its quotes")
        self.stack.append(python2_text(_ESCAPE.sub(_unescaped, line[1:-1])))

    def unicode_line(self) -> None:
        """Push a string with its characters beyond Latin-1 escaped."""
        try:
            # Called by name and not through str(), which would import the codec's module.
            self.stack.append(codecs.raw_unicode_escape_decode(self.line())[0])
        except ValueError as error:
            raise self.corrupt("a string with a broken escape") from error

    def tuple_of(self, n: int) -> None:
        """Push a tuple of the n values on top."""
        start = len(self.stack) - n
        if start < (self.marks[-1] if self.marks else 0):
            raise self.corrupt("a pickle opcode with nothing on the stack")
        self.stack[start:] = [Items("tuple", self.stack[start:])]

    def named(self) -> Token:
        """Return the name that two lines spell."""
        return self.name(Token(self.utf8(self.line()), self.utf8(self.line())))

    def stack_global(self) -> None:
        """Push the name that two strings spell."""
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.corrupt("a global whose name is not a string")
        self.stack.append(self.name(Token(module, name)))

    def refer(self, pid: Value) -> None:
        """Push a persistent id and note it."""
        reference = Persistent(pid)
        self.persistent.append(reference)
        self.stack.append(reference)

    def name(self, token: Token) -> Token:
        """Note a name, where names are noted, and return it."""
        if self.tokens is not None:
            self._note(self.tokens, token)
        return token

    def _note(self, noted: list[Any], one: Token | Made) -> None:
        if len(noted) >= MAX_NOTED:
            raise self.unsafe(f"more than {MAX_NOTED:,} names or calls")
        noted.append(one)

    def make(self, made: Made) -> None:
        """Push the record of a call, and note it where calls are noted."""
        if self.made is not None:
            self._note(self.made, made)
        self.stack.append(made)

    def call(self) -> None:
        """Push the record of a call."""
        args = self.pop_args()
        self.make(Made(self.pop(), args))

    def call_with_keywords(self) -> None:
        """Push the record of a call with keyword arguments."""
        kwargs = self.pop()
        if not isinstance(kwargs, Pairs):
            raise self.corrupt("keyword arguments that are not a dict")
        args = self.pop_args()
        self.make(Made(self.pop(), args, kwargs))

    def instance(self) -> None:
        """Push the record of a call on a name and the values above the mark."""
        target = self.named()
        self.make(Made(target, self.pop_to_mark()))

    def object(self) -> None:
        """Push the record of a call, all of it above the mark."""
        items = self.pop_to_mark()
        if not items:
            raise self.corrupt("an object without a class")
        self.make(Made(items[0], items[1:]))

    def build(self) -> None:
        """Give a state to the record on top."""
        state = self.pop()
        made = self.top()
        # BUILD on a class would set its attributes; a second one would hide what the first set.
        if not isinstance(made, Made) or made.state is not None:
            raise self.corrupt("a state for something that takes none")
        made.state = state

    def extend(self, new: list[Value], kinds: tuple[str, ...]) -> None:
        """Give items to the record under them."""
        target = self.top()
        if isinstance(target, Items) and target.kind in kinds:
            target.items.extend(new)
        elif isinstance(target, Made):
            if target.items is None:
                target.items = []
            target.items.extend(new)
        else:
            raise self.corrupt("items for something that takes none")

    def update(self, new: list[tuple[Value, Value]]) -> None:
        """Give keys and values to the record under them."""
        target = self.top()
        if isinstance(target, Pairs):
            target.pairs.extend(new)
        elif isinstance(target, Made):
            if target.pairs is None:
                target.pairs = []
            target.pairs.extend(new)
        else:
            raise self.corrupt("keys for something that takes none")

    def set_item(self) -> None:
        """Give one key and value to the record under them."""
        value, key = self.pop(), self.pop()
        self.update([(key, value)])

    def protocol(self) -> None:
        """Check the version that the pickle says it has."""
        version = self.uint(1)
        if version > _HIGHEST_PROTOCOL:
            raise self.corrupt(f"pickle protocol {version}")

    def frame(self) -> None:
        """Check that a frame lies within the bytes."""
        if self.uint(8) > len(self.data) - self.pos:
            raise self.truncated()

    def refuse(self) -> None:
        """Refuse what refers to tables or buffers outside of the file."""
        raise self.unsafe("an extension code or out-of-band buffer, which no checkpoint has")


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPES.get(code, match[0])


def python2_text(data: bytes) -> str:
    """Return a string of Python 2, in which text and bytes were the same thing."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        return str(data, "latin-1")
