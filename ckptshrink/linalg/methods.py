"""Factorizers by name, and what each of them offers."""

from typing import TYPE_CHECKING, Final, Protocol

from ckptshrink.registry import Registry

if TYPE_CHECKING:  # the names alone are wanted by a command line that must not wait for torch
    from torch import Tensor

    from ckptshrink.linalg.factors import Factors, Options, Pruned
    from ckptshrink.linalg.laws import Law


class Factorizer(Protocol):
    """A way to make a matrix smaller.

    Attributes
    ----------
    name : str
        As in the registry.
    source : str
        The paper or book that says how and why.
    laws : frozenset of Law
        What every result has. The conformance suite holds a factorizer to what it declares.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def laws(self) -> "frozenset[Law]": ...  # noqa: D102

    def __call__(self, W: "Tensor", r: int, options: "Options") -> "Factors | Pruned":
        """Return what stands for W at rank `r`, with its error as stored.

        Parameters
        ----------
        W : (m, n), floating
            In any orientation, with any strides, on any device. Not modified.
        r : int, 1 <= r <= min(m, n)
        options : Options

        Raises
        ------
        RankError
            `r` is out of range.
        NonFiniteError
            W has a NaN or an infinity.
        """
        ...

    def sq_errors(self, W: "Tensor", options: "Options") -> "Tensor":
        """Return the squared Frobenius error to expect at ranks 0, 1, ..., k, without rounding.

        Returns
        -------
        (k + 1,) float64, on the CPU
            Non-increasing; the first is ``norm(W) ** 2``.
        """
        ...


METHODS: Final = Registry(
    "method",
    {
        "svd": "ckptshrink.linalg.svd:svd",
        "semi-nmf": "ckptshrink.linalg.semi_nmf:semi_nmf",
        "prune": "ckptshrink.linalg.prune:prune",
    },
    "ckptshrink.factorizers",
)
"""The factorizers; a third party's come in by the entry point group ``ckptshrink.factorizers``."""
