"""The steps of an LSTM layer as one compiled loop, for small batches (extra ``fast``: numba).

A step of one sequence is 4 µs of arithmetic, and ten calls of torch around it take 10 to 15 µs.
Importing this module imports numba; the loop is compiled then, or read from numba's cache.
"""

from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LOW, _HIGH, _LOG2E = np.float32(-87.0), np.float32(87.0), np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# exp on half an octave, by Cephes: good to 1 ulp
_C0, _C1, _C2 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
)
_C3, _C4, _C5 = (
    np.float32(4.1665795894e-2),
    np.float32(1.6666665459e-1),
    np.float32(5.0000001201e-1),
)
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1.0), np.float32(2.0)

# error_model: numpy's division. Python's asks about zero each time, and no loop with that question
# in it became a vector loop (31 µs a step in place of 4).
_VECTOR: Final = {"error_model": "numpy", "fastmath": {"contract"}}
_SUM: Final = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


@intrinsic
def _as_float(typing: Any, bits: Any) -> Any:
    """Take the bits of an int32 as a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return numba.float32(numba.int32), generate


@numba.njit(inline="always", **_VECTOR)
def _sigmoid(x: Any) -> Any:
    y = min(max(-x, _LOW), _HIGH)
    n = np.floor(y * _LOG2E + _HALF)
    y = y - n * _LN2_HIGH - n * _LN2_LOW
    e = ((((_C0 * y + _C1) * y + _C2) * y + _C3) * y + _C4) * y + _C5
    e = e * y * y + y + _ONE
    return _ONE / (_ONE + e * _as_float((np.int32(n) + np.int32(127)) << np.int32(23)))


@numba.njit(**_SUM)
def _products(V: Any, h: Any, p: Any) -> None:
    for k in range(V.shape[0]):
        total = np.float32(0)
        for j in range(V.shape[1]):
            total += V[k, j] * h[j]
        p[k] = total


# Indices count from 0 in slices: of others numba asks whether they are negative, each time. One
# array is written in each loop, and five are read: with more of either, LLVM gives up telling
# whether they overlap. Five at a time took 20 µs at rank 100, where four took 24.
@numba.njit(**_VECTOR)
def _add_five(u0: Any, u1: Any, u2: Any, u3: Any, u4: Any, p: Any, gates: Any) -> None:
    p0, p1, p2, p3, p4 = p[0], p[1], p[2], p[3], p[4]
    for j in range(len(gates)):
        gates[j] += ((p0 * u0[j] + p1 * u1[j]) + (p2 * u2[j] + p3 * u3[j])) + p4 * u4[j]


@numba.njit(**_VECTOR)
def _add_one(u: Any, p: Any, gates: Any) -> None:
    for j in range(len(gates)):
        gates[j] += p * u[j]


@numba.njit(**_VECTOR)
def _add(U: Any, p: Any, gates: Any) -> None:
    r = len(U)
    whole = r - r % 5
    for k in range(0, whole, 5):
        _add_five(U[k], U[k + 1], U[k + 2], U[k + 3], U[k + 4], p[k : k + 5], gates)
    for k in range(whole, r):
        _add_one(U[k], p[k], gates)


@numba.njit(**_VECTOR)
def _squash(gates: Any) -> None:
    for j in range(len(gates)):
        gates[j] = _sigmoid(gates[j])


@numba.njit(**_VECTOR)
def _remember(i: Any, f: Any, g: Any, c: Any) -> None:
    for j in range(len(c)):
        c[j] = f[j] * c[j] + _TWO * i[j] * (_TWO * g[j] - _ONE)


@numba.njit(**_VECTOR)
def _show(o: Any, c: Any, h: Any) -> None:
    for j in range(len(h)):
        h[j] = o[j] - _TWO * o[j] * _sigmoid(c[j])


@numba.njit(**_VECTOR)
def _double(x: Any) -> None:
    for j in range(len(x)):
        x[j] *= _TWO


@numba.njit(**_VECTOR)
def _negative(x: Any, y: Any) -> None:
    for j in range(len(y)):
        y[j] = -x[j]


def _run(
    ready: Any, double_g: Any, down: Any, up: Any, h: Any, c: Any, out: Any, reverse: Any
) -> None:
    steps, batch, width = ready.shape
    H = width // 4
    p = np.empty(down.shape[0], np.float32)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        for b in range(batch):
            gates = ready[t, b]
            if double_g:
                _double(gates[2 * H : 3 * H])
            _products(down, h[b], p)
            _add(up, p, gates)
            _squash(gates)
            _remember(gates[:H], gates[H : 2 * H], gates[2 * H : 3 * H], c[b])
            _show(gates[3 * H :], c[b], h[b])
            _negative(h[b], out[t, b])


def _compiled() -> Any:
    signature = "void(f4[:,:,::1],b1,f4[:,::1],f4[:,::1],f4[:,::1],f4[:,::1],f4[:,:,::1],b1)"
    try:
        return numba.njit(signature, nogil=True, cache=True, **_VECTOR)(_run)
    except RuntimeError:  # no folder that numba could keep it in
        return numba.njit(signature, nogil=True, **_VECTOR)(_run)


_RUN: Final = _compiled()


def run(
    ready: Floats,
    down: Floats,
    up: Floats,
    h: Floats,
    c: Floats,
    out: Floats,
    *,
    double_g: bool,
    reverse: bool,
) -> None:
    """Run the steps of a chunk.

    Parameters
    ----------
    ready : (T, B, 4H)
        Gates of each step without the recurrent part; overwritten.
    down : (r, H)
    up : (r, 4H)
        A recurrent pair: ``gates += (h @ down.T) @ up``.
    h, c : (B, H)
        -h and 2 c before the first step; after it, those after the last one.
    out : (T, B, H)
        Gets h of each step.
    double_g : bool
        Whether the gates g of `ready` are still to be scaled by 2, as those of `up` are.
    """
    _RUN(ready, double_g, down, up, h, c, out, reverse)
