"""Runs one direction of one LSTM layer by the fastest of its routes, and remembers its choice.

``loop``
    The factors as they are, by torch's operations, see `steps`.
``compiled``
    The same in one compiled loop, for small batches, where numba is installed.
``dense``
    The recurrent pair multiplied back, and torch's own LSTM; an input pair stays one.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from ckptshrink.runtime import steps
from ckptshrink.runtime.layer import LSTMWeights, lstm_loop
from ckptshrink.runtime.products import Constant
from ckptshrink.runtime.watch import Watch
from ckptshrink.runtime.weights import LowRank, PerGate, Weight, dense, shape_of

ROUTES: Final = ("auto", "loop", "compiled", "dense")

_CLEAR: Final = 0.6
"""Share of the dense multiply-adds up to which factors have always been faster here."""

_CLEAR_ENTRIES: Final = 1 << 20
"""... and entries of the dense weights from which that is so: a step of a smaller layer takes no
longer than the calls that a step by factors takes."""

_COMPILED_ROWS: Final = (2, 8)
_COMPILED_WORK: Final = 256
"""Batches up to which the compiled loop was the faster one: of every rank, and where batch times
rank is no more than this. Beyond, torch's products gain from reading a weight once for all rows."""

_TRIAL_STEPS: Final = 16
"""Steps of a trial run; a one-step run is tried as such."""

_FUSED_BYTES: Final = 1 << 20
"""Size of both U up to which, one sequence at a time, their product is made in every step: what is
larger leaves the inner caches, and is cheaper for all steps at once."""

_FUSED_ROWS: Final = 8

_NARROW: Final = 0.7
"""Rank of an input pair, as a share of the input, up to which torch's LSTM on the narrower input is
faster; at 0.92 it was 6 % slower."""

_CHOICES: Final[dict[tuple[object, ...], str]] = {}
"""What trials have found, by shapes: layers that are alike, and copies, take one route."""

Runner = Callable[[Tensor, Tensor, Tensor, Sequence[int], bool], tuple[Tensor, Tensor, Tensor]]


class Recurrence:
    """The runner of one direction of one layer.

    It keeps what it prepared until a weight changes; a change through ``.data`` is not seen, and
    `forget` is for that. It is no part of a module's state: a copy starts afresh.

    Parameters
    ----------
    route : str
        ``"auto"``, or the name of one route to be taken wherever it can be.
    """

    def __init__(self, route: str = "auto") -> None:
        self.route = route
        self.taken: set[str] = set()
        self._watch = Watch()
        self._runners: dict[str, Runner] = {}
        self._routes: dict[tuple[object, ...], str] = {}

    def __reduce__(self) -> tuple[type["Recurrence"], tuple[str]]:
        """Copy and pickle the route alone: matrices in oneDNN's own order can be neither."""
        return Recurrence, (self.route,)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self,
        weights: LSTMWeights,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        *,
        batch_sizes: Sequence[int] | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs and last states, as `lstm_loop` does; differentiable where that is wanted.

        Parameters
        ----------
        x : (T, B, I), or (sum(batch_sizes), I) of a packed sequence
        h, c : (B, P), (B, H)
        batch_sizes : sequence of int, optional
            By step, descending.
        reverse : bool
        """
        wanted = torch.is_grad_enabled() and any(
            t.requires_grad for t in (x, h, c, *weights.tensors())
        )
        # what autocast does to a call it does not do to one that writes to a given tensor
        plain = x.dtype in {torch.float32, torch.float64} and x.numel() > 0
        if wanted or not plain or torch.is_autocast_enabled(x.device.type):
            return lstm_loop(weights, x, h, c, batch_sizes=batch_sizes, reverse=reverse)
        with torch.no_grad():
            sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes
            flat = x.reshape(-1, x.shape[-1])
            self._forget_changed(weights)
            # what the choice depends on while the weights are the same
            key = (sizes[0], sizes[-1], min(len(sizes), _TRIAL_STEPS), torch.get_num_threads())
            if key not in self._routes:
                self._routes[key] = self._choice(weights, flat, sizes)
            route = self._routes[key]
            self.taken.add(route)
            out, h, c = self._runner(route, weights, sizes[0])(flat, h, c, sizes, reverse)
        return (out if batch_sizes is not None else out.view(*x.shape[:2], -1)), h, c

    def route_for(self, weights: LSTMWeights, batch: int, steps: int) -> str:
        """Return the route for a batch of so many steps; by a trial on zeros where it takes one."""
        like = weights.tensors()[0]
        if weights.joint is not None:
            width = shape_of(weights.joint)[1] - weights.state
        else:
            width = shape_of(weights.separate()[0])[1]
        length = min(steps, _TRIAL_STEPS)
        with torch.no_grad():
            self._forget_changed(weights)
            return self._choice(weights, like.new_zeros(length * batch, width), [batch] * length)

    # -- choosing ----------------------------------------------------------------------------

    def _choice(self, weights: LSTMWeights, x: Tensor, sizes: Sequence[int]) -> str:
        able = _able(weights, x, sizes)
        if self.route != "auto":
            return self.route if self.route in able else "loop"
        if isinstance(weights.wh, Tensor) and "dense" in able and len(sizes) > 1:
            return "dense"
        factored = "compiled" if "compiled" in able else "loop"
        own, whole = _work(weights)
        clear = own <= _CLEAR * whole and whole * sizes[0] >= _CLEAR_ENTRIES
        if "dense" not in able or (x.device.type == "cpu" and clear):
            return factored
        length = min(len(sizes), _TRIAL_STEPS)
        shapes = tuple((t.shape, t.dtype, t.device) for t in weights.tensors())
        key = (shapes, sizes[0], length, torch.get_num_threads(), factored)
        if key not in _CHOICES:
            _CHOICES[key] = self._faster(weights, x, sizes[:length], (factored, "dense"))
        return _CHOICES[key]

    def _faster(
        self, weights: LSTMWeights, x: Tensor, sizes: Sequence[int], routes: Sequence[str]
    ) -> str:
        x = x[: sum(sizes)]
        h, c = x.new_zeros(sizes[0], weights.state), x.new_zeros(sizes[0], weights.hidden)
        seconds = dict.fromkeys(routes, float("inf"))
        for turn in range(4):
            for route in routes:
                run = self._runner(route, weights, sizes[0])
                start = time.perf_counter()
                run(x, h, c, sizes, False)
                if x.device.type == "cuda":
                    torch.cuda.synchronize(x.device)
                if turn:  # the first one prepares
                    seconds[route] = min(seconds[route], time.perf_counter() - start)
        return min(routes, key=seconds.__getitem__)

    # -- preparing ---------------------------------------------------------------------------

    def forget(self) -> None:
        """Let go of what was prepared."""
        self._watch.forget()
        self._runners.clear()
        self._routes.clear()

    def _forget_changed(self, weights: LSTMWeights) -> None:
        if self._watch.changed(weights.tensors()):
            self._runners.clear()
            self._routes.clear()

    def _runner(self, route: str, weights: LSTMWeights, batch: int) -> Runner:
        name = route
        if route == "loop":
            name = "fused" if _fuses(weights, batch) else "loop"
        if name not in self._runners:
            self._runners[name] = _prepare(name, weights)
        return self._runners[name]


def _prepare(name: str, weights: LSTMWeights) -> Runner:
    if name == "dense":
        return _dense(weights)
    prepared = steps.Prepared.of(weights, fused=name == "fused")
    compiled = name == "compiled"

    def run(
        x: Tensor, h: Tensor, c: Tensor, sizes: Sequence[int], reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return steps.run(prepared, x, h, c, sizes, reverse=reverse, compiled=compiled)

    return run


def _dense(weights: LSTMWeights) -> Runner:
    """Return a runner that has multiplied the recurrent pair back."""
    wi: Weight
    wh: Weight
    if weights.joint is not None:
        wi, wh = weights.joint.dense().tensor_split([-weights.state], dim=1)
    else:
        wi, wh = weights.separate()
    if not (isinstance(wi, LowRank) and _narrows(wi)):
        wi = dense(wi).detach().contiguous()
    wh = dense(wh).detach().contiguous()
    through: steps.Prepared | None = None  # copies the weights, so made where it is run only
    narrow = Constant(wi.V) if isinstance(wi, LowRank) else None
    flat = [wi.U.detach() if isinstance(wi, LowRank) else dense(wi), wh]
    bias = weights.total_bias
    if bias is not None:
        flat += [bias.detach(), torch.zeros_like(bias)]
    plain = weights.cell_clip is None and weights.proj is None
    kernel: Any = torch._VF.lstm  # what nn.LSTM itself calls

    def run(
        x: Tensor, h: Tensor, c: Tensor, sizes: Sequence[int], reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # torch's kernel orders its weights anew at each call; it knows neither clips nor one
        # direction that is the backward one, and with a projection it is a loop itself
        if not plain or len(sizes) == 1 or (reverse and sizes[0] != sizes[-1]):
            nonlocal through
            if through is None:
                through = steps.Prepared.of(replace(weights, wi=wi, wh=wh, joint=None), fused=False)
            return steps.run(through, x, h, c, sizes, reverse=reverse)
        if narrow is not None:
            x = narrow(x)
        states, common = (h[None], c[None]), (flat, bias is not None, 1, 0.0, False, False)
        if sizes[0] != sizes[-1]:
            out, h, c = kernel(x, torch.tensor(sizes), states, *common)
        else:
            steps_first = x.view(len(sizes), sizes[0], -1)
            steps_first = steps_first.flip(0) if reverse else steps_first
            out, h, c = kernel(steps_first, states, *common, False)
            out = (out.flip(0) if reverse else out).reshape(len(x), -1)
        return out, h[0], c[0]

    return run


def _able(weights: LSTMWeights, x: Tensor, sizes: Sequence[int]) -> set[str]:
    """Return the routes that can be taken."""
    able = {"loop", "dense"}
    if weights.joint is not None:
        return able
    rank = weights.wh.rank if isinstance(weights.wh, LowRank | PerGate) else None
    plain = weights.proj is None and weights.cell_clip is None
    always, sometimes = _COMPILED_ROWS
    small = rank is not None and (
        sizes[0] <= always or (sizes[0] <= sometimes and sizes[0] * rank <= _COMPILED_WORK)
    )
    fits = x.dtype == torch.float32 and x.device.type == "cpu" and sizes[0] == sizes[-1]
    if plain and small and fits and _numba():
        able.add("compiled")
    return able


def _fuses(weights: LSTMWeights, batch: int) -> bool:
    if weights.joint is not None:
        return True
    wi, wh = weights.separate()
    if isinstance(wi, Tensor) or isinstance(wh, Tensor):
        return False
    nbytes = (wi.rank + wh.rank) * 4 * weights.hidden * 4
    return batch >= _FUSED_ROWS or nbytes <= _FUSED_BYTES


def _narrows(wi: LowRank) -> bool:
    """Whether an input pair is worth running as two products of a dense layer."""
    return wi.rank <= _NARROW * wi.shape[1]


def _work(weights: LSTMWeights) -> tuple[int, int]:
    """Return multiply-adds of a row in a step, and those of dense weights."""
    own = whole = 0
    for weight in (weights.wi, weights.wh, weights.joint):
        if weight is not None:
            m, n = shape_of(weight)
            whole += m * n
            own += m * n if isinstance(weight, Tensor) else weight.rank * (m + n)
    return own, whole


@functools.cache
def _numba() -> bool:
    return importlib.util.find_spec("numba") is not None
