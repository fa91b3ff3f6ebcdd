"""How fast factored LSTMs run: against the best dense ones of the same run.

Run: ``python benchmarks/runtime.py [--threads 1] [--rounds 5] [--only layer,decode,model,elmo]``

Every comparison is paired: the contestants take turns in one process, medians are printed, and the
ratios are medians of the ratios of each round. *Best dense* is the fastest float32 contestant of
the table among nn.LSTM, nn.LSTM with oneDNN switched off and a loop of addmm with the input part
made in advance: for one step nn.LSTM packs its weights anew at each call, and is no measure. In
bfloat16 and in int8 results are others; they are there to be seen. Weights are random.

Ranks are those that the planner accepts: where a pair would not be smaller, that weight is dense.
``--no-fast`` hides numba, which is what an installation without the extra ``fast`` has.
"""

import argparse
import importlib.util
import math
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from dense_rivals import AddmmLoop, AllenNLPCell, Module, in_bfloat16, in_int8, without_onednn
from torch import Tensor, nn

from ckptshrink.runtime.language_model import LanguageModel
from ckptshrink.runtime.layer import LSTMWeights, lstm_loop
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.recurrence import Recurrence
from ckptshrink.runtime.timing import Ratio, Timing, interleaved
from ckptshrink.runtime.weights import LowRank, Weight, dense

BEST_OF: Final = ("nn.LSTM", "nn.LSTM, oneDNN off", "addmm loop")
WH, BOTH = "Wh", "Wi and Wh"
NOISE: Final = 0.97
"""Ratio down to which a contestant that runs the dense kernel itself was seen here."""

Key = tuple[str, str, int, int, str]
"""Part, which weights are factored, rank, batch, route."""


@dataclass
class Setting:
    """What is asked for."""

    rounds: int
    fast: bool
    device: torch.device
    inputs: int
    hidden: int
    vocabulary: int
    elmo: tuple[int, int]
    steps: int
    batches: tuple[int, ...]
    ranks: tuple[int, ...]
    found: dict[Key, Ratio] = field(default_factory=dict)
    limits: list[tuple[str, Ratio]] = field(default_factory=list)

    @property
    def routes(self) -> tuple[str, ...]:
        """Routes that are measured one by one, and the runtime's own choice."""
        return ("loop", "compiled", "auto") if self.fast else ("loop", "auto")


@dataclass
class Contestant:
    """One row of a table."""

    run: Callable[[], object]
    key: Key | None = None
    error: float | None = None
    route: str = ""


def measured(
    title: str, contestants: Mapping[str, Contestant], base: Sequence[str], setting: Setting
) -> None:
    """Let contestants take turns, print their table, and keep the ratios.

    Parameters
    ----------
    base : sequence of str
        Those of whom the fastest is what the others are compared with.
    """
    on_cuda = setting.device.type == "cuda"
    timings = interleaved(
        {name: c.run for name, c in contestants.items()},
        setting.rounds,
        settle=torch.cuda.synchronize if on_cuda else lambda: None,
    )
    best = min((name for name in base if name in timings), key=lambda n: timings[n].median)
    print(f"\n### {title}\n")
    print(f"| contestant | median ms | {best} / it | spread | max abs error | route |")
    print("|---|---:|---:|---|---:|---|")
    for name, contestant in contestants.items():
        ratio = timings[best].over(timings[name])
        error = "" if contestant.error is None else f"{contestant.error:.1e}"
        print(
            f"| {name} | {_ms(timings[name])} | {ratio.median:.2f} | {ratio.least:.2f} to "
            f"{ratio.most:.2f} | {error} | {contestant.route} |"
        )
        if contestant.key is not None:
            setting.found[contestant.key] = ratio
            if contestant.key[-1] == "auto" and base is BEST_OF:
                setting.limits.append((f"{title}, {name}", ratio))
    sys.stdout.flush()


def _ms(timing: Timing) -> str:
    return f"{1000 * timing.median:.3g}" if timing.median < 1 else f"{1000 * timing.median:.0f}"


def accepted(m: int, n: int, r: int) -> bool:
    """Whether the planner takes a rank: the pair has fewer parameters than the matrix."""
    return r <= (m * n - 1) // (m + n)


class Random:
    """Random weights of the size that torch starts an LSTM with."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._device = device

    def normal(self, *shape: int, deviation: float = 1.0) -> Tensor:
        """Return normal values."""
        values = torch.randn(*shape, generator=self._generator) * deviation
        return values.to(self._device)

    def weight(self, m: int, n: int, hidden: int, r: int | None) -> Weight:
        """Return (m, n), as a pair where it is smaller."""
        deviation = 1 / math.sqrt(3 * hidden)
        if r is None or not accepted(m, n, r):
            return self.normal(m, n, deviation=deviation)
        side = math.sqrt(deviation / math.sqrt(r))
        return LowRank(self.normal(m, r, deviation=side), self.normal(r, n, deviation=side))


def lstm_of(weights: Mapping[str, Weight]) -> nn.LSTM:
    """Return the dense module of some weights."""
    return FactoredLSTM.from_weights(weights).dense().eval()


def layer_weights(random: Random, inputs: int, hidden: int, scope: str, r: int | None) -> Any:
    """Return the weights of one layer, those in the scope at a rank."""
    m = 4 * hidden
    return {
        "weight_ih_l0": random.weight(m, inputs, hidden, r if scope == BOTH else None),
        "weight_hh_l0": random.weight(m, hidden, hidden, r),
        "bias_ih_l0": random.normal(m, deviation=0.1),
        "bias_hh_l0": random.normal(m, deviation=0.1),
    }


def max_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((one.float() - other.float()).abs().max())


# -- one layer ------------------------------------------------------------------------------------


def layers(setting: Setting) -> None:
    """Measure one layer at every batch size."""
    for batch in setting.batches:
        one_layer(setting, "layer", batch, setting.steps)


def decoding(setting: Setting) -> None:
    """Measure one step of one sequence."""
    one_layer(setting, "decode", 1, 1)


def one_layer(setting: Setting, part: str, batch: int, steps: int) -> None:
    """Measure one layer at one batch size, at every rank."""
    width, H = setting.inputs, setting.hidden
    random = Random(0, setting.device)
    x = random.normal(steps, batch, width)
    state = (random.normal(1, batch, H, deviation=0.3), random.normal(1, batch, H, deviation=0.3))
    lstm = lstm_of(layer_weights(random, width, H, WH, None))
    contestants: dict[str, Contestant] = {}
    for name, module, cast in dense_modules(lstm, setting):
        given = (cast(x), tuple(map(cast, state)))
        contestants[name] = Contestant(partial(module, *given))
    plain = {name: p.detach() for name, p in lstm.named_parameters()}
    twin = FactoredLSTM.from_weights(plain)
    contestants["FactoredLSTM, dense weights"] = Contestant(
        partial(twin, x, state),
        error=max_difference(twin(x, state)[0], lstm(x, state)[0]),
        route="+".join(twin.routes(batch, steps)),
    )
    for scope, label, r in ranks(setting):
        weights = layer_weights(random, width, H, scope, r)
        wanted = lstm_of(weights)(x, state)[0]
        for route in setting.routes:
            module = FactoredLSTM.from_weights(weights, route=route).eval()
            contestants[f"{label}, {route}"] = Contestant(
                partial(module, x, state),
                (part, scope, r, batch, route),
                max_difference(module(x, state)[0], wanted),
                "+".join(module.routes(batch, steps)),
            )
    title = f"One layer {width}→{H}, batch {batch}, {steps} step{'s' if steps > 1 else ''}"
    measured(title, contestants, BEST_OF, setting)


def ranks(setting: Setting) -> Iterator[tuple[str, str, int]]:
    """Yield scopes, labels and ranks for one layer; the last rank is the planner's limit."""
    width, H = setting.inputs, setting.hidden
    limits = {n: (4 * H * n - 1) // (4 * H + n) for n in (width, H)}
    for scope in (WH, BOTH):
        for r in sorted({*(r for r in setting.ranks if r < limits[H]), limits[H]}):
            alone = scope == BOTH and r > limits[width]
            limit = " (the planner's limit)" if r == limits[H] else ""
            yield scope, f"{scope} r={r}{limit}{', Wi dense' if alone else ''}", r


def dense_modules(
    module: nn.Module, setting: Setting
) -> Iterator[tuple[str, Module, Callable[[Tensor], Tensor]]]:
    """Yield dense contestants: their name, the module, and how its floating inputs are cast."""
    yield "nn.LSTM", module, torch.clone
    if setting.device.type == "cpu":
        yield "nn.LSTM, oneDNN off", without_onednn(module), torch.clone
    loop = AddmmLoop(module) if isinstance(module, nn.LSTM) else with_addmm(module)
    yield "addmm loop", loop, torch.clone
    yield "nn.LSTM in bfloat16", in_bfloat16(module), as_bfloat16
    if setting.device.type == "cpu":
        quantized = in_int8(module)
        if quantized is None:
            print("\nThis torch has no dynamic int8 LSTM.")
        else:
            yield "nn.LSTM in dynamic int8", quantized, torch.clone


def as_bfloat16(x: Tensor) -> Tensor:
    """Return floating values in bfloat16, ids as they are."""
    return x.bfloat16() if x.is_floating_point() else x


# -- the whole language model ---------------------------------------------------------------------


class DenseModel(nn.Module):
    """An AWD-LSTM as its authors have it: embedding, layers, a decoder with the same weight."""

    def __init__(self, encoder: Tensor, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Embedding.from_pretrained(encoder)
        self.layers = nn.ModuleList(layers)
        self.decoder = nn.Linear(encoder.shape[1], encoder.shape[0], device=encoder.device)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor, states: Sequence[Any]) -> Tensor:
        """Return logits (T, B, V) for tokens (T, B)."""
        x = self.encoder(tokens)
        for layer, state in zip(self.layers, states, strict=True):
            x = layer(x, state)[0]
        logits: Tensor = self.decoder(x)
        return logits


def logits_of(model: LanguageModel, tokens: Tensor, states: Sequence[Any]) -> Tensor:
    """Return logits (T, B, V) of the runtime's own language model."""
    return model.logits(model(tokens, states)[0])


def with_addmm(module: nn.Module) -> DenseModel:
    """Return a model's twin whose layers are loops of addmm."""
    assert isinstance(module, DenseModel)
    loops = [AddmmLoop(layer) for layer in module.layers if isinstance(layer, nn.LSTM)]
    twin = DenseModel(module.encoder.weight.detach(), loops)
    twin.decoder.bias = module.decoder.bias
    return twin


def models(setting: Setting) -> None:
    """Measure the whole language model: whole sequences, and one step."""
    for batch in setting.batches:
        # at batch 8 a layer alone says enough
        one_model(setting, "model", {8: 10}.get(batch, batch), setting.steps)
    one_model(setting, "model decode", 1, 1)


def one_model(setting: Setting, part: str, batch: int, steps: int) -> None:
    """Measure the language model at one batch size."""
    width, H, V = setting.inputs, setting.hidden, setting.vocabulary
    sizes = [(width, H), (H, H), (H, width)]
    random = Random(1, setting.device)
    encoder = random.normal(V, width, deviation=0.1)
    tokens = torch.arange(steps * batch, device=setting.device).view(steps, batch) * 7919 % V
    states = [
        (random.normal(1, batch, h, deviation=0.3), random.normal(1, batch, h, deviation=0.3))
        for _, h in sizes
    ]

    def dense_model(weights: Sequence[Any]) -> DenseModel:
        return DenseModel(encoder, [lstm_of(one) for one in weights]).eval()

    base = dense_model([layer_weights(random, i, h, WH, None) for i, h in sizes])
    contestants: dict[str, Contestant] = {}
    for name, module, cast in dense_modules(base, setting):
        given = [tuple(map(cast, state)) for state in states]
        contestants[name] = Contestant(partial(module, tokens, given))
    for scope in (WH, BOTH):
        for r in [r for r in setting.ranks if r != 50]:
            weights = [layer_weights(random, i, h, scope, r) for i, h in sizes]
            reference = dense_model(weights)
            wanted = reference(tokens, states)
            for route in setting.routes:
                rnns = [FactoredLSTM.from_weights(one, route=route) for one in weights]
                ours = LanguageModel(reference.encoder, rnns, reference.decoder)
                run = partial(logits_of, ours, tokens, states)
                taken = [name for rnn in rnns for name in rnn.routes(batch, steps)]
                contestants[f"{scope} r={r}, {route}"] = Contestant(
                    run,
                    (part, scope, r, batch, route),
                    max_difference(run(), wanted),
                    "+".join(dict.fromkeys(taken)),
                )
    title = f"Language model {width}→{H}→{H}→{width}, {V} words, batch {batch}, {steps} step"
    measured(title + ("s" if steps > 1 else ""), contestants, BEST_OF, setting)


# -- ELMo -----------------------------------------------------------------------------------------

CLIP: Final = 3.0
SENTENCES, WORDS = 8, 25


def elmo(setting: Setting) -> None:
    """Measure the LSTMs of the original ELMo: 2 layers of 2 directions, projected and clipped."""
    state, H = setting.elmo
    random = Random(2, setting.device)
    x = random.normal(SENTENCES, WORDS, state)
    made = [
        LSTMWeights(
            wi=random.weight(4 * H, state, state, None),
            wh=random.weight(4 * H, state, state, None),
            bias=random.normal(4 * H, deviation=0.1),
            proj=random.weight(state, H, H // 4, None),
            cell_clip=CLIP,
            proj_clip=CLIP,
        )
        for _ in range(4)
    ]
    peer = AllenNLPStack(made)
    contestants = {"AllenNLP's loop": Contestant(partial(peer, x))}
    wanted = peer(x)
    for route in ("auto",):
        ours = Stack(made, route)
        contestants["dense, auto"] = Contestant(
            partial(ours, x),
            ("elmo", "dense", 0, SENTENCES, route),
            max_difference(ours(x), wanted),
            ours.taken(),
        )
    for r in [r for r in setting.ranks if r != 50 and accepted(4 * H, state, r)]:
        factored = [with_wh(one, random.weight(4 * H, state, state, r)) for one in made]
        wanted = Stack(factored, "reference")(x)
        for route in setting.routes:
            ours = Stack(factored, route)
            contestants[f"{WH} r={r}, {route}"] = Contestant(
                partial(ours, x),
                ("elmo", WH, r, SENTENCES, route),
                max_difference(ours(x), wanted),
                ours.taken(),
            )
    title = (
        f"ELMo {state}→{H}→{state}, 2 layers, 2 directions, {SENTENCES} sentences of {WORDS} tokens"
    )
    measured(title, contestants, ["AllenNLP's loop"], setting)


def with_wh(weights: LSTMWeights, wh: Weight) -> LSTMWeights:
    """Return weights with another Wh."""
    return LSTMWeights(
        weights.wi, wh, weights.bias, None, weights.proj, weights.cell_clip, weights.proj_clip
    )


def bidirectional(x: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Return the outputs of the last layer; each but the first adds its input to its output.

    Parameters
    ----------
    x : (B, T, P)
    run : callable
        Runs one of the four cells: layer 0 forward and backward, then layer 1.
    """
    forward = backward = x
    for layer in range(2):
        ahead, back = run(2 * layer, forward), run(2 * layer + 1, backward)
        forward, backward = (ahead + forward, back + backward) if layer else (ahead, back)
    return torch.cat([forward, backward], dim=-1)


class AllenNLPStack:
    """The four cells in AllenNLP's loop."""

    def __init__(self, made: Sequence[LSTMWeights]) -> None:
        self._cells = [
            AllenNLPCell(dense(w.wi), dense(w.wh), w.bias, dense(w.proj), CLIP, reverse=k % 2 == 1)
            for k, w in enumerate(made)
            if w.wi is not None and w.wh is not None and w.proj is not None and w.bias is not None
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs (B, T, 2P) for x (B, T, P)."""
        lengths = [x.shape[1]] * x.shape[0]
        return bidirectional(x, lambda k, given: self._cells[k](given, lengths))


class Stack:
    """The four cells in this runtime, by one route, or in its differentiable reference."""

    def __init__(self, made: Sequence[LSTMWeights], route: str) -> None:
        self._made = made
        self._runners = [
            partial(lstm_loop) if route == "reference" else Recurrence(route) for _ in made
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Return outputs (B, T, 2P) for x (B, T, P)."""

        def run(k: int, given: Tensor) -> Tensor:
            weights, by_step = self._made[k], given.transpose(0, 1)
            h = given.new_zeros(len(given), weights.state)
            c = given.new_zeros(len(given), weights.hidden)
            out = self._runners[k](weights, by_step, h, c, reverse=k % 2 == 1)[0]
            return out.transpose(0, 1)

        return bidirectional(x, run)

    def taken(self) -> str:
        """Return the routes that the cells took."""
        routes = [r for one in self._runners if isinstance(one, Recurrence) for r in one.taken]
        return "+".join(dict.fromkeys(routes))


# -- what was aimed at ----------------------------------------------------------------------------

Aim = tuple[str, float, tuple[str, str, int, int], str]
AIMS: Final[tuple[Aim, ...]] = (
    ("Wh r=10, batch 1, plain torch", 10, ("layer", WH, 10, 1), "loop"),
    ("Wh r=10, batch 1, with `fast`", 17, ("layer", WH, 10, 1), "fast"),
    ("Wh r=10, batch 8", 7.5, ("layer", WH, 10, 8), "auto"),
    ("Wh r=10, batch 80", 2.7, ("layer", WH, 10, 80), "auto"),
    ("Wh r=100, batch 1", 6, ("layer", WH, 100, 1), "auto"),
    ("Wh r=400, batch 1", 2.4, ("layer", WH, 400, 1), "auto"),
    ("Wh r=400, batch 8", 1.6, ("layer", WH, 400, 8), "auto"),
    ("Wh r=400, batch 80", 1.5, ("layer", WH, 400, 80), "auto"),
    ("Wi and Wh r=10, batch 1, plain torch", 20, ("layer", BOTH, 10, 1), "loop"),
    ("Wi and Wh r=10, batch 8, plain torch", 18, ("layer", BOTH, 10, 8), "loop"),
    ("Wi and Wh r=10, batch 80, plain torch", 6, ("layer", BOTH, 10, 80), "loop"),
    ("decoding, Wh r=10", 2.2, ("decode", WH, 10, 1), "auto"),
    ("decoding, Wi and Wh r=10", 13, ("decode", BOTH, 10, 1), "auto"),
    ("language model, batch 1, Wh r=10", 6, ("model", WH, 10, 1), "auto"),
    ("language model, batch 1, Wi and Wh r=10", 10, ("model", BOTH, 10, 1), "auto"),
    ("ELMo, dense, of AllenNLP's loop", 1.6, ("elmo", "dense", 0, SENTENCES), "auto"),
    ("ELMo, Wh r=10, of AllenNLP's loop", 7, ("elmo", WH, 10, SENTENCES), "auto"),
    ("ELMo, Wh r=100, of AllenNLP's loop", 4.8, ("elmo", WH, 100, SENTENCES), "auto"),
    ("ELMo, Wh r=400, of AllenNLP's loop", 1.8, ("elmo", WH, 400, SENTENCES), "auto"),
)
"""What was aimed at, how many times as fast at least, where it was measured, and by which route:
``fast`` is the runtime's own choice where it has numba."""


def aims(setting: Setting) -> None:
    """Print what was aimed at and what came out."""
    print("\n### Aims: times as fast as the best dense, one thread\n")
    print("| aim | at least | loop | compiled | auto | |")
    print("|---|---:|---:|---:|---:|---|")
    for text, least, key, route in AIMS:
        ratios = {name: setting.found.get((*key, name)) for name in ("loop", "compiled", "auto")}
        decides = "auto" if route == "fast" else route
        by = None if route == "fast" and not setting.fast else ratios[decides]
        verdict = "not measured" if by is None else "reached" if by.median >= least else "**short**"
        cells = ["" if ratio is None else f"{ratio.median:.2f}" for ratio in ratios.values()]
        print(f"| {text} | {least:g} | {' | '.join(cells)} | {verdict} |")
    if setting.limits:
        where, ratio = min(setting.limits, key=lambda found: found[1].median)
        verdict = "reached" if ratio.median >= NOISE else "**short**"
        print(
            f"| never slower than dense (least: {where}; {NOISE} is 1 within noise) | 1 | | | "
            f"{ratio.median:.2f} | {verdict} |"
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    """Run the parts asked for and print their tables as Markdown."""
    parts: dict[str, Callable[[Setting], None]] = {
        "layer": layers, "decode": decoding, "model": models, "elmo": elmo,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(parts), help="parts, of: %(default)s")
    parser.add_argument("--fast", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--device", default="cpu")
    # smaller models, to try the script itself
    for name, default in (
        ("hidden", "1150"), ("inputs", "400"), ("vocabulary", "10000"), ("elmo", "512,4096"),
        ("steps", "70"), ("batches", "1,8,80"), ("ranks", "10,50,100,400"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=_numbers, default=default, help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = [part for part in args.only.split(",") if part not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    has_numba = importlib.util.find_spec("numba") is not None
    fast = has_numba if args.fast is None else args.fast
    if fast and not has_numba:
        parser.error("--fast needs numba, which isn't installed")
    if not fast:
        sys.modules["numba"] = None  # type: ignore[assignment]  # as if it weren't installed
    torch.set_num_threads(args.threads)
    setting = Setting(
        args.rounds, fast, torch.device(args.device), args.inputs[0], args.hidden[0],
        args.vocabulary[0], args.elmo, args.steps[0], args.batches, args.ranks,
    )  # fmt: skip
    print(
        f"{platform.machine()}, {args.device}, {args.threads} thread(s), "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{'numba' if fast else 'no numba'}, {args.rounds} rounds"
    )
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, about settings for Intel's GPUs
        for part in args.only.split(","):
            parts[part](setting)
    aims(setting)


if __name__ == "__main__":
    main()
