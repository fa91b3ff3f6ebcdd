"""Matrices to factorize: builders with a stated spectrum, and Hypothesis strategies over them."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor


def with_spectrum(
    S: Sequence[float] | Tensor,
    m: int,
    n: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return (m, n) with singular values `S` and random singular vectors, rounded to `dtype`."""
    S = torch.as_tensor(S, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(rows: int) -> Tensor:
        normal = torch.randn(rows, len(S), generator=generator, dtype=torch.float64)
        q: Tensor = torch.linalg.qr(normal).Q
        return q

    return ((orthonormal(m) * S) @ orthonormal(n).T).to(dtype)


def decaying(
    m: int, n: int, power: float, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (m, n) with singular values ``k ** -power``."""
    S = torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -power
    return with_spectrum(S, m, n, seed, dtype)


def normal(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (m, n) of independent normal entries: a flat spectrum."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype)


def lstm_like(m: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (m, n) with singular values ``k ** -0.6`` and 30 % (Frobenius) of white noise."""
    W = decaying(m, n, 0.6, seed, torch.float64)
    noise = normal(m, n, seed + 1, torch.float64)
    return (W + 0.3 * float(W.norm() / noise.norm()) * noise).to(dtype)


def low_rank(m: int, n: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (m, n) of rank `r` exactly: small integers, whose sums no dtype rounds."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(-1, 2, (m, r), generator=generator, dtype=torch.float64)
    right = torch.randint(-1, 2, (r, n), generator=generator, dtype=torch.float64)
    return (left @ right).to(dtype)


def singular_values(W: Tensor) -> Tensor:
    """Return the singular values of the stored entries, by a direct SVD in float64."""
    S: Tensor = torch.linalg.svdvals(W.double())
    return S


def tail(W: Tensor, r: int) -> float:
    """Return the least possible error of rank `r`, ``sqrt(sum(S[r:] ** 2))``."""
    return float(singular_values(W)[r:].square().sum().sqrt())


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
"""Rows and columns, either of them the longer."""


@st.composite
def spectra(draw: st.DrawFn, k: int) -> list[float]:
    """Singular values, descending: powers, plateaus, a cliff to zero, and any scale."""
    kind = draw(st.sampled_from(["power", "plateau", "cliff"]))
    scale = 10.0 ** draw(st.integers(-6, 6))
    if kind == "plateau":
        levels = sorted(
            draw(st.lists(st.sampled_from([3.0, 2.0, 1.0, 0.5]), min_size=k, max_size=k))
        )
        return [scale * level for level in reversed(levels)]
    power = draw(st.floats(0.0, 3.0))
    rank = draw(st.integers(1, k)) if kind == "cliff" else k
    return [scale * i**-power if i <= rank else 0.0 for i in range(1, k + 1)]


@st.composite
def matrices(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Tensor:
    """Matrices of `shapes` with spectra of `spectra`."""
    m, n = draw(shapes)
    return with_spectrum(draw(spectra(min(m, n))), m, n, draw(st.integers(0, 2**16)), dtype)
