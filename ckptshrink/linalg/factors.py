"""What a factorizer returns, how it is stored, and how a matrix is rebuilt from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ckptshrink.errors import CorruptCheckpointError
from ckptshrink.linalg.products import matmul


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a factorization. A factorizer ignores those that aren't about it.

    Attributes
    ----------
    dtype : torch.dtype or None
        Dtype of the stored tensors; None for that of the matrix.
    exact : bool
        Optimal to rounding, by a direct SVD in float64, instead of to 1e-6.
    nonnegative : str
        Which factor of a Semi-NMF has no negative entry, ``"U"`` or ``"V"``.
    solver : str
        Of a Semi-NMF: ``"closed"``, or ``"ding"`` for the paper's multiplicative updates.
    iterations : int
        Updates that ``"ding"`` makes.
    seed : int
        Of every random choice.
    """

    dtype: torch.dtype | None = None
    exact: bool = False
    nonnegative: Literal["U", "V"] = "V"
    solver: Literal["closed", "ding"] = "closed"
    iterations: int = 100
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Factors:
    """A pair whose product stands for a matrix.

    Attributes
    ----------
    U : (m, r)
        Contiguous, in the storage dtype.
    V : (r, n)
        Contiguous, in the storage dtype.
    sq_error : float
        ``norm(W - U @ V) ** 2`` of the pair as stored.
    sq_norm : float
        ``norm(W) ** 2``.
    spectrum : (at most min(m, n),) float64, or None
        Singular values of W that were found on the way, descending. Those far below the first
        are only as accurate as the route was: to 3e-4 of it from a float32 Gram matrix.
    notes : tuple of str
        What a user should know, one line each.
    """

    U: Tensor
    V: Tensor
    sq_error: float
    sq_norm: float
    spectrum: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def rel_error(self) -> float:
        """``norm(W - U @ V) / norm(W)``; 0 for a zero matrix."""
        return relative(self.sq_error, self.sq_norm)

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored tensors by suffix."""
        return {".U": self.U, ".V": self.V}

    def product(self) -> Tensor:
        """Return ``U @ V`` in the storage dtype, as `dense_from` does."""
        return product(self.U, self.V, self.U.dtype)


@dataclass(frozen=True, slots=True)
class Pruned:
    """A matrix with most entries set to zero.

    Attributes
    ----------
    mask : (m, n) bool
        True where an entry is kept.
    values : (count,)
        Kept entries in row-major order, in the storage dtype.
    sq_error, sq_norm : float
        ``norm(W - kept) ** 2`` as stored, and ``norm(W) ** 2``.
    notes : tuple of str
        What a user should know, one line each.
    """

    mask: Tensor
    values: Tensor
    sq_error: float
    sq_norm: float
    notes: tuple[str, ...] = ()

    @property
    def rel_error(self) -> float:
        """``norm(W - kept) / norm(W)``; 0 for a zero matrix."""
        return relative(self.sq_error, self.sq_norm)

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored tensors by suffix: the packed mask (see `pack_bits`) and the values."""
        return {".mask": pack_bits(self.mask), ".values": self.values}

    def dense(self) -> Tensor:
        """Return the matrix with its zeros, in the storage dtype."""
        return scatter(self.mask, self.values, self.values.dtype)


def from_tensors(
    stored: Mapping[str, Tensor],
    shape: tuple[int, int],
    sq_error: float = math.nan,
    sq_norm: float = math.nan,
) -> Factors | Pruned:
    """Return what `tensors` came from: the inverse of ``Factors.tensors`` and ``Pruned.tensors``.

    Parameters
    ----------
    stored : mapping of str to Tensor
        By suffix: ``.U`` and ``.V``, or ``.mask`` and ``.values``.
    shape : (int, int)
        Shape of the matrix.
    sq_error, sq_norm : float, optional
        Not stored in tensors; NaN where the caller doesn't know them.

    Raises
    ------
    CorruptCheckpointError
        The suffixes or shapes aren't those of a pair or of a pruned matrix of this shape.
    """
    if set(stored) == {".U", ".V"}:
        U, V = stored[".U"], stored[".V"]
        if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[0] or U.dtype != V.dtype:
            raise CorruptCheckpointError(
                f"factors of shapes {tuple(U.shape)} and {tuple(V.shape)} do not multiply"
            )
        if (U.shape[0], V.shape[1]) != tuple(shape):
            raise CorruptCheckpointError(
                f"factors make a {U.shape[0]} x {V.shape[1]} matrix; {shape[0]} x {shape[1]} wanted"
            )
        return Factors(U, V, sq_error, sq_norm)
    if set(stored) == {".mask", ".values"}:
        mask = unpack_bits(stored[".mask"], shape)
        values = stored[".values"]
        if values.ndim != 1 or int(mask.sum()) != values.numel():
            raise CorruptCheckpointError(
                f"the mask keeps {int(mask.sum())} values; {values.numel()} are stored"
            )
        return Pruned(mask, values, sq_error, sq_norm)
    raise CorruptCheckpointError(f"no method stores {', '.join(sorted(stored)) or 'nothing'}")


def dense_from(
    stored: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype | None = None
) -> Tensor:
    """Rebuild a matrix from its stored tensors.

    A pair is multiplied in float32, in float64 if it is stored in that, and cast once.

    Parameters
    ----------
    stored : mapping of str to Tensor
        By suffix, as `from_tensors` takes it.
    shape : (int, int)
    dtype : torch.dtype, optional
        Of the result; by default that of the stored values.

    Returns
    -------
    (m, n), dtype
        New and contiguous, on the stored tensors' device.

    Raises
    ------
    CorruptCheckpointError
        As `from_tensors`.
    """
    found = from_tensors(stored, shape)
    if isinstance(found, Pruned):
        return scatter(found.mask, found.values, dtype or found.values.dtype)
    return product(found.U, found.V, dtype or found.U.dtype)


def product(U: Tensor, V: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``U @ V``, computed in float32 or better, in `dtype`."""
    compute = torch.float64 if U.dtype == torch.float64 else torch.float32
    return matmul(U.to(compute), V.to(compute)).to(dtype)


def scatter(mask: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix of zeros with `values` at the True places of `mask`, in row-major order."""
    dense = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    dense[mask] = values.to(dtype)
    return dense


def pack_bits(mask: Tensor) -> Tensor:
    """Return a mask as bytes: entry i, row-major, is bit ``i % 8`` of byte ``i // 8``.

    Bit 0 is the least significant one. Bits after the last entry are 0.

    Examples
    --------
    >>> pack_bits(torch.tensor([[True, False, False], [True, True, False]])).tolist()
    [25]
    """
    bits = np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little")
    return torch.from_numpy(bits).to(mask.device)


def unpack_bits(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the mask that `pack_bits` packed.

    Raises
    ------
    CorruptCheckpointError
        There are not ``ceil(m * n / 8)`` bytes, or a bit after the last entry is set.
    """
    count = shape[0] * shape[1]
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != -(-count // 8):
        raise CorruptCheckpointError(
            f"a mask of {shape[0]} x {shape[1]} has {-(-count // 8)} bytes; got {packed.numel()}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), bitorder="little")
    if bits[count:].any():
        raise CorruptCheckpointError("the mask has bits set after its last entry")
    mask = torch.from_numpy(bits[:count].astype(np.bool_)).reshape(shape)
    return mask.to(packed.device)


def relative(sq_error: float, sq_norm: float) -> float:
    """Return the relative Frobenius error of two squares; 0 where the norm is."""
    return math.sqrt(sq_error / sq_norm) if sq_norm > 0 else 0.0
