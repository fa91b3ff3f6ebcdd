"""Which failures may go better the next time, and which would only be repeated."""

import errno
from typing import Final

from ckptshrink.errors import TransientError, WorkerLostError

_TRANSIENT: Final = frozenset(
    {
        errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE,
        errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT,
        errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETUNREACH,
        errno.EHOSTUNREACH, errno.EPIPE, errno.ENETDOWN, errno.EACCES, errno.EPERM,
    }
)  # fmt: skip
"""What a disk, a network, a full machine or an administrator can mend, and a retry may."""


def is_transient(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, may not come again."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, TransientError | WorkerLostError | MemoryError):
            return True
        if isinstance(found, OSError) and found.errno in _TRANSIENT:
            return True
        found = found.__cause__ or found.__context__
    return False
