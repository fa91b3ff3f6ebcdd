"""The loop: windows in, steps of the optimizer, a validation an epoch, a file to go on from."""

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from ckptshrink.digest import value_sha256
from ckptshrink.errors import CheckpointError
from ckptshrink.events import Listener, Progress, silent
from ckptshrink.io.staging import Staging
from ckptshrink.training.recipe import Recipe
from ckptshrink.training.streams import Streams, Window

_SAVE_SECONDS: Final = 300.0
"""Time after which a long epoch is saved in its middle: what a stopped run loses at most."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a model makes of a window.

    Attributes
    ----------
    loss : (), with a graph
        What is minimised.
    nats : float
        Sum over targets, without penalties.
    count : int
        Targets.
    state : object
        For the window that follows, without a graph.
    """

    loss: Tensor
    nats: float
    count: int
    state: Any


class Trainable(Protocol):
    """A module that can be trained on windows of a text."""

    def start(self, batch: int) -> Any:
        """Return the state before any text."""

    def step(self, window: Window, state: Any, recipe: Recipe) -> Step:
        """Return the loss of a window."""

    def score(self, window: Window, state: Any) -> tuple[float, int, Any]:
        """Return the summed loss in nats, the number of targets, and the state."""


@dataclass(frozen=True, slots=True)
class Report:
    """One epoch.

    Attributes
    ----------
    epoch : int
        From 1.
    train_ppl, valid_ppl : float
        Of training windows as they were seen, dropouts and all; of the validation text without.
    lr : float
        At the end of the epoch.
    seconds : float
    averaged : bool
        Whether the validation was of averaged weights.
    """

    epoch: int
    train_ppl: float
    valid_ppl: float
    lr: float
    seconds: float
    averaged: bool


@dataclass(slots=True)
class _Progress:
    """Where a run is; everything of it is in its file."""

    epoch: int = 0
    start: int = 0
    n_steps: int = 0
    nats: float = 0.0
    count: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    asgd: bool = False


_KEPT: Final = ("epoch", "start", "n_steps", "nats", "count", "seconds", "losses", "asgd")
"""Fields of `_Progress` that a file has as they are."""


def train(
    module: Any,
    text: Streams,
    valid: Streams,
    recipe: Recipe,
    *,
    resume: Path | None = None,
    until: Callable[[], bool] = lambda: False,
    report: Callable[[Report], None] = lambda report: None,
    listen: Listener = silent,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Report, ...]:
    """Train a module; at the end it holds the weights of its best epoch.

    Parameters
    ----------
    module : nn.Module and Trainable
        On its device. Trained in place.
    text, valid : Streams
        On the same device. `valid` may have another number of streams.
    recipe : Recipe
    resume : Path, optional
        A file to keep where the run is, and to go on from if it is there. A run that is stopped and
        resumed does the very steps of one that is not.
    until : callable
        Asked after each step; True stops, as after the last epoch.
    report : callable
        Told of each epoch.

    Returns
    -------
    tuple of Report
        Of every epoch, those before a resumption too.

    Raises
    ------
    CheckpointError
        `resume` is of another model, text or recipe.
    ValueError
        The loss is no finite number.
    """
    run = _Run(module, text, valid, recipe, clock)
    if resume is not None and resume.exists():
        run.load(resume)
    run.epochs(resume, until, report, listen)
    run.take_best()
    return tuple(run.at.reports)


class _Run:
    """A run at work."""

    def __init__(
        self,
        module: Any,
        text: Streams,
        valid: Streams,
        recipe: Recipe,
        clock: Callable[[], float],
    ) -> None:
        self.module = module
        self.text = text
        self.valid = valid
        self.recipe = recipe
        self.clock = clock
        self.at = _Progress()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.parameters, recipe, asgd=False)
        self.average = [p.detach().clone() for p in self.parameters] if recipe.average else []
        self.best: dict[str, Tensor] | None = None
        self.state: Any = None
        self.device = self.parameters[0].device
        self.windows = torch.Generator().manual_seed(recipe.seed)
        torch.manual_seed(recipe.seed)

    def epochs(
        self,
        resume: Path | None,
        until: Callable[[], bool],
        report: Callable[[Report], None],
        listen: Listener,
    ) -> None:
        while self.at.epoch < self.recipe.epochs:
            if not self._epoch(resume, until, listen):
                if resume is not None:
                    self.save(resume)
                return
            made = self._validated()
            self.at.reports.append(made)
            self.at.losses.append(math.log(made.valid_ppl))
            self._keep_best(made)
            self._maybe_average()
            self.at.epoch += 1
            self.at.start, self.at.nats, self.at.count, self.at.seconds = 0, 0.0, 0, 0.0
            self.state = None
            if resume is not None:
                self.save(resume)
            report(made)
            if until():
                return

    def _epoch(self, resume: Path | None, until: Callable[[], bool], listen: Listener) -> bool:
        """Do the rest of an epoch; return whether it was done to its end."""
        at, recipe = self.at, self.recipe
        self.module.train()
        if self.state is None:
            self.state = self.module.start(self.text.batch)
        saved = began = self.clock()
        total = recipe.epochs * self.text.steps
        before = at.seconds
        for window in self.text.windows(recipe.steps, self.windows, start=at.start):
            self._step(window)
            at.start = window.start + window.steps
            at.seconds = before + self.clock() - began
            ppl = math.exp(min(50.0, at.nats / at.count))
            doing = f"epoch {at.epoch + 1}: perplexity {ppl:.1f}"
            listen(Progress(doing, at.epoch * self.text.steps + at.start, total))
            if until() and at.start < self.text.steps:
                return False
            if resume is not None and self.clock() - saved > _SAVE_SECONDS:
                self.save(resume)
                saved = self.clock()
        return True

    def _step(self, window: Window) -> None:
        at, recipe = self.at, self.recipe
        # a short window has a noisier gradient: awd-lstm-lm scales its rate down with its length
        lr = self._lr() * window.steps / recipe.steps
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            step = self.module.step(window, self.state, recipe)
        if not math.isfinite(step.nats):
            raise ValueError(f"the loss is {step.nats} after {at.n_steps} steps; try a lower lr")
        step.loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, recipe.clip)
        self.optimizer.step()
        for kept, parameter in zip(self.average, self.parameters, strict=bool(self.average)):
            # early averages forget faster, or the random beginning would stay in them for long
            decay = min(recipe.average, (1 + at.n_steps) / (10 + at.n_steps))
            kept.lerp_(parameter.detach(), 1 - decay)
        self.state = step.state
        at.n_steps += 1
        at.nats += step.nats
        at.count += step.count

    def _lr(self) -> float:
        recipe = self.recipe
        if recipe.schedule == "constant":
            return recipe.lr
        share = (self.at.epoch + self.at.start / self.text.steps) / recipe.epochs
        if share < recipe.warmup:
            return recipe.lr * (0.1 + 0.9 * share / recipe.warmup)
        rest = (share - recipe.warmup) / (1 - recipe.warmup)
        return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * rest)))

    # -- validation --------------------------------------------------------------------------

    def _validated(self) -> Report:
        with self._averaged() as averaged:
            valid = self.perplexity(self.valid)
        if not math.isfinite(valid):
            raise ValueError(f"the validation perplexity is {valid}; try a lower lr")
        at = self.at
        return Report(
            at.epoch + 1, math.exp(at.nats / at.count), valid, self._lr(), at.seconds, averaged
        )

    def perplexity(self, text: Streams) -> float:
        self.module.eval()
        state, nats, count = self.module.start(text.batch), 0.0, 0
        with torch.no_grad():
            for window in text.windows(self.recipe.steps):
                more, targets, state = self.module.score(window, state)
                nats, count = nats + more, count + targets
        return math.exp(min(700.0, nats / count))

    @contextmanager
    def _averaged(self) -> Iterator[bool]:
        """Have the averaged weights in the module, where there are any."""
        averages = self._averages()
        if not averages:
            yield False
            return
        own = [p.detach().clone() for p in self.parameters]
        _copy(self.parameters, averages)
        try:
            yield True
        finally:
            _copy(self.parameters, own)

    def _averages(self) -> list[Tensor]:
        if self.at.asgd:
            return [self.optimizer.state[p]["ax"] for p in self.parameters]
        return self.average

    def _keep_best(self, made: Report) -> None:
        if made.valid_ppl > min(r.valid_ppl for r in self.at.reports):
            return
        with self._averaged():
            self.best = {n: t.detach().clone() for n, t in self.module.state_dict().items()}

    def _maybe_average(self) -> None:
        """Turn SGD into ASGD once the validation loss stays where it is."""
        losses, patience = self.at.losses, self.recipe.patience
        if self.recipe.optimizer != "sgd" or self.at.asgd or len(losses) <= patience:
            return
        if losses[-1] > min(losses[:-patience]):
            self.at.asgd = True
            self.optimizer = _optimizer(self.parameters, self.recipe, asgd=True)

    def take_best(self) -> None:
        """Put the weights of the best epoch into the module."""
        if self.best is not None:
            self.module.load_state_dict(self.best)
        self.module.eval()

    # -- the file ----------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run depends on."""
        at = self.at
        document = {
            "made_by": self._made_by(),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self.best,
            "state": self.state,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "windows": self.windows.get_state(),
            "at": {
                name: getattr(at, name)
                for name in (
                    "epoch",
                    "start",
                    "n_steps",
                    "nats",
                    "count",
                    "seconds",
                    "losses",
                    "asgd",
                )
            },
            "reports": [
                [r.epoch, r.train_ppl, r.valid_ppl, r.lr, r.seconds, r.averaged] for r in at.reports
            ],
        }
        written = io.BytesIO()
        torch.save(document, written)
        with Staging(path, single=True, overwrite=True) as staging:
            staging.create(path.name).write(written.getbuffer())
            staging.commit()

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        try:
            found = torch.load(path, map_location=self.device, weights_only=True)
            made_by = found["made_by"]
        except Exception as error:  # torch.load raises whatever its reader trips over
            raise CheckpointError("is no file of a training run", path=path) from error
        if made_by != self._made_by():
            raise CheckpointError(
                "is of another model, text or recipe",
                path=path,
                hint="give another file, or remove this one to begin anew",
            )
        self.at = _Progress(**found["at"], reports=[Report(*row) for row in found["reports"]])
        if self.at.asgd:
            self.optimizer = _optimizer(self.parameters, self.recipe, asgd=True)
        self.module.load_state_dict(found["module"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.average = list(found["average"])
        self.best = found["best"]
        self.state = found["state"]
        torch.set_rng_state(found["random"].cpu())
        if found["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(found["random_cuda"].cpu())
        self.windows.set_state(found["windows"].cpu())

    def _made_by(self) -> str:
        """Return a hash of what a file must have in common with a run to be of use to it."""
        shapes = {n: list(p.shape) for n, p in self.module.named_parameters()}
        sizes = [list(self.text.tokens.shape), list(self.valid.tokens.shape)]
        sums = [int(self.text.tokens.sum()), int(self.valid.tokens.sum())]
        recipe = self.recipe.model_dump(mode="json")
        return value_sha256({"shapes": shapes, "sizes": sizes, "sums": sums, "recipe": recipe})


def _optimizer(
    parameters: list[nn.Parameter], recipe: Recipe, *, asgd: bool
) -> torch.optim.Optimizer:
    if asgd:
        return torch.optim.ASGD(
            parameters, lr=recipe.lr, t0=0, lambd=0.0, weight_decay=recipe.weight_decay
        )
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
    )


@torch.no_grad()
def _copy(targets: list[nn.Parameter], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
