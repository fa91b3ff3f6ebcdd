"""What the two processes of the HDF5 reader say to each other: JSON values and raw bytes.

JSON and no pickle: the process at the other end may be under the control of a file.
"""

import json
import os
import socket
from typing import Any, Final

_LENGTH: Final = 8
MAX_MESSAGE: Final = 48 << 20
"""Bytes of a message, which is at most the index of a file: 100,000 objects take 30 MB."""


class Pipe:
    """A connected socket, over which each side says one thing at a time.

    Parameters
    ----------
    connection : socket
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, message: dict[str, Any]) -> None:
        """Send a JSON value."""
        data = json.dumps(message, allow_nan=False).encode()
        self.connection.sendall(len(data).to_bytes(_LENGTH, "little") + data)

    def receive(self) -> dict[str, Any] | None:
        """Return the next message; None where the other side has gone.

        Raises
        ------
        ValueError
            It is no JSON object, or over `MAX_MESSAGE` bytes.
        EOFError
            The other side went in the middle of it.
        OSError
            The time that the socket has for it is over.
        """
        head = bytearray(_LENGTH)
        if not self._fill(memoryview(head)):
            return None
        length = int.from_bytes(head, "little")
        if length > MAX_MESSAGE:
            raise ValueError("a message that is too long")
        data = bytearray(length)
        self.receive_bytes(memoryview(data))
        try:
            message = json.loads(data)
        except RecursionError as error:
            raise ValueError("a message that is nested too deeply") from error
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
        return message

    def send_bytes(self, data: memoryview) -> None:
        """Send the bytes of a payload, behind a message that says how many there are."""
        self.send({"nbytes": len(data)})
        self.connection.sendall(data)

    def receive_bytes(self, view: memoryview) -> None:
        """Fill a view with the next bytes; raises as `receive` does."""
        if not self._fill(view) and len(view):
            raise EOFError("the other side has gone")

    def close(self) -> None:
        """Hang up."""
        self.connection.close()

    def _fill(self, view: memoryview) -> bool:
        """Fill a view; return whether there was anything."""
        wanted = len(view)
        while view:
            n = self.connection.recv_into(view)
            if n == 0:
                if len(view) == wanted:
                    return False
                raise EOFError("the other side has gone")
            view = view[n:]
        return True


def shield_standard_streams() -> None:
    """Open the null device on whichever of the descriptors 0 to 2 are closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
