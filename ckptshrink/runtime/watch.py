"""Whether tensors are still what something was made from."""

from collections.abc import Sequence

from torch import Tensor


class Watch:
    """Remembers tensors, and tells when they have changed.

    A change in place is seen, unless it is made through ``.data``, which leaves no trace.
    """

    def __init__(self) -> None:
        self._key: tuple[tuple[int, int], ...] | None = None
        self._held: tuple[Tensor, ...] = ()

    def changed(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether these are others than at the last call, or other values in them."""
        key = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        if key == self._key:
            return False
        self._key = key
        # they are kept, so that no other comes to lie at the address of one
        self._held = tuple(t.detach() for t in tensors)
        return True

    def forget(self) -> None:
        """Take the next ones for others."""
        self._key, self._held = None, ()
