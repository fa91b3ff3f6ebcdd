"""The training loop, its dropouts and streams, on models small enough to train in a second."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ckptshrink.errors import CheckpointError
from ckptshrink.runtime import LanguageModel, load_language_model
from ckptshrink.training import Dropouts, Recipe, Regularized, Report, Streams, train
from ckptshrink.training.making import awd_state_dict, new_language_model
from ckptshrink.training.regularized import locked

PLAIN = Dropouts(0, 0, 0, 0, 0)


def text(n: int = 600, words: int = 7, seed: int = 0) -> Tensor:
    """Return a text in which each word follows from the one before it, but for some noise."""
    generator = torch.Generator().manual_seed(seed)
    made = [0]
    for noisy in torch.rand(n - 1, generator=generator).tolist():
        made.append((made[-1] * 3 + 1) % words if noisy > 0.1 else int(noisy * 10 * words))
    return torch.tensor(made)


def model(ranks: dict[str, int] | None = None, seed: int = 0) -> LanguageModel:
    return new_language_model(
        7, 8, 12, 2, ranks=ranks, generator=torch.Generator().manual_seed(seed)
    )


def recipe(**changed: Any) -> Recipe:
    return Recipe(**{"epochs": 4, "batch": 4, "steps": 10, "lr": 0.01, "clip": 1.0, **changed})


def run(
    module: Regularized, plan: Recipe, **more: Any
) -> tuple[tuple[Report, ...], dict[str, Tensor]]:
    reports = train(module, Streams.of(text(), 4), Streams.of(text(seed=1), 2), plan, **more)
    return reports, {n: t.clone() for n, t in module.state_dict().items()}


# -- streams -----------------------------------------------------------------------------------


@given(
    n=st.integers(4, 200), batch=st.integers(1, 6), steps=st.integers(1, 30), drawn=st.booleans()
)
def test_every_word_of_a_stream_but_its_first_is_a_target_once(
    n: int, batch: int, steps: int, drawn: bool
) -> None:
    if n // batch < 2:
        with pytest.raises(ValueError, match="too few"):
            Streams.of(torch.arange(n), batch)
        return
    streams = Streams.of(torch.arange(n), batch)
    generator = torch.Generator().manual_seed(n) if drawn else None
    windows = list(streams.windows(steps, generator))
    targets = torch.cat([w.targets for w in windows])
    length = n // batch
    assert targets.t().flatten().tolist() == [
        b * length + i for b in range(batch) for i in range(1, length)
    ]
    assert torch.equal(torch.cat([w.tokens for w in windows]), targets - 1)
    assert [w.start for w in windows] == [
        0,
        *torch.tensor([w.steps for w in windows])[:-1].cumsum(0).tolist(),
    ]


# -- dropouts ----------------------------------------------------------------------------------


def test_without_dropouts_the_loss_is_the_models_own_score() -> None:
    module = Regularized(model(), PLAIN).train()
    window = next(iter(Streams.of(text(), 4).windows(20)))
    step = module.step(window, module.start(4), recipe(alpha=0, beta=0))
    nats, _ = module.model.score(window.tokens, window.targets)
    assert step.nats == pytest.approx(float(nats), rel=1e-6)
    mean = float(nats) / window.targets.numel()
    assert float(step.loss.detach()) == pytest.approx(mean, rel=1e-6)


def test_penalties_are_those_of_the_paper() -> None:
    module = Regularized(model(), PLAIN).train()
    window = next(iter(Streams.of(text(), 4).windows(20)))
    plain = module.step(window, module.start(4), recipe(alpha=0, beta=0))
    both = module.step(window, module.start(4), recipe(alpha=2, beta=1))
    out = module.model(window.tokens)[0]
    expected = 2 * out.pow(2).mean() + (out[1:] - out[:-1]).pow(2).mean()
    added = (both.loss - plain.loss).detach()
    assert float(added) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert both.nats == plain.nats


def test_a_mask_is_the_same_at_every_step() -> None:
    torch.manual_seed(0)
    x = locked(torch.ones(9, 4, 50), 0.3)
    assert torch.equal(x, x[:1].expand_as(x))
    assert sorted(x.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])


def test_in_evaluation_nothing_is_dropped() -> None:
    module = Regularized(model(), Dropouts(0.5, 0.5, 0.5, 0.5, 0.5)).eval()
    tokens = text()[:40].view(10, 4)
    dropped, raw, _ = module(tokens, module.start(4))
    assert torch.equal(dropped, raw)
    assert torch.allclose(raw, module.model(tokens)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["words", "inputs", "layers", "outputs", "weights"])
def test_each_dropout_changes_the_output_and_keeps_its_mean(name: str) -> None:
    module = Regularized(model(), Dropouts(**{**dict.fromkeys(PLAIN.__slots__, 0.0), name: 0.3}))
    tokens = text()[:40].view(10, 4)
    plain = module.model(tokens)[0].detach()
    module.train()
    torch.manual_seed(0)
    with torch.no_grad():
        made = torch.stack([module(tokens, module.start(4))[0] for _ in range(400)])
    assert not torch.allclose(made[0], plain, atol=1e-4)
    assert float((made.mean(0) - plain).abs().mean()) < 0.35 * float(plain.abs().mean())


@pytest.mark.parametrize(
    "ranks", [None, {"weight_hh_l0": 3}, {"weight_hh_l0": 3, "weight_ih_l0": 2}]
)
def test_every_parameter_gets_a_gradient(ranks: dict[str, int] | None) -> None:
    module = Regularized(model(ranks)).train()
    window = next(iter(Streams.of(text(), 4).windows(20)))
    module.step(window, module.start(4), recipe()).loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("p", [-0.1, 1.0, math.nan])
def test_a_dropout_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        Dropouts(words=p)


# -- the loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [None, {"weight_hh_l0": 3}])
def test_training_learns_a_text_that_can_be_learnt(ranks: dict[str, int] | None) -> None:
    module = Regularized(model(ranks), Dropouts(0.0, 0.1, 0.1, 0.1, 0.1))
    reports, _ = run(module, recipe(epochs=20, lr=0.03, alpha=0, beta=0))
    assert reports[0].valid_ppl > 3.5
    assert reports[-1].valid_ppl < 2.5  # seven words by chance; the noise alone is above 1.7
    assert not module.training


def test_at_the_end_the_module_has_the_weights_of_its_best_epoch() -> None:
    module = Regularized(model())
    reports, _ = run(module, recipe(epochs=6, lr=0.3, schedule="constant"))
    valid = Streams.of(text(seed=1), 2)
    state, nats, count = module.start(2), 0.0, 0
    for window in valid.windows(10):
        more, targets, state = module.score(window, state)
        nats, count = nats + more, count + targets
    assert math.exp(nats / count) == pytest.approx(min(r.valid_ppl for r in reports), rel=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"average": 0.9},
        {"optimizer": "sgd", "lr": 1.0, "schedule": "constant", "patience": 1, "epochs": 6},
    ],
)
@pytest.mark.parametrize("after", [1, 7, 23])
def test_a_stopped_run_does_the_very_steps_of_one_that_was_not(
    tmp_path: Path, changed: dict[str, Any], after: int
) -> None:
    plan = recipe(**changed)
    whole, weights = run(Regularized(model()), plan)
    first = Regularized(model())
    run(first, plan, resume=tmp_path / "run", until=countdown(after))
    reports, resumed = run(Regularized(model(seed=9)), plan, resume=tmp_path / "run")
    assert [(r.train_ppl, r.valid_ppl, r.lr, r.averaged) for r in reports] == [
        (r.train_ppl, r.valid_ppl, r.lr, r.averaged) for r in whole
    ]
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed[name]), name


def countdown(n: int) -> Callable[[], bool]:
    left = [n]

    def until() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return until


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    _, one = run(Regularized(model()), recipe(epochs=1))
    _, same = run(Regularized(model()), recipe(epochs=1))
    _, other = run(Regularized(model()), recipe(epochs=1, seed=1))
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not all(torch.equal(one[n], other[n]) for n in one)


def test_sgd_turns_into_averaged_sgd_when_validation_stays_where_it_is() -> None:
    plan = recipe(
        epochs=12, optimizer="sgd", lr=2.0, schedule="constant", patience=2, alpha=0, beta=0
    )
    reports, _ = run(Regularized(model(), PLAIN), plan)
    averaged = [r.averaged for r in reports]
    first = averaged.index(True)
    assert averaged == [False] * first + [True] * (len(reports) - first)
    losses = [r.valid_ppl for r in reports]
    assert losses[first - 1] > min(losses[: first - 2])  # what set it off


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    run(Regularized(model()), recipe(epochs=1), resume=tmp_path / "run")
    with pytest.raises(CheckpointError, match="another model, text or recipe"):
        run(Regularized(model()), recipe(epochs=2), resume=tmp_path / "run")
    (tmp_path / "no").write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="no file of a training run"):
        run(Regularized(model()), recipe(epochs=1), resume=tmp_path / "no")


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    reports, weights = run(Regularized(model()), recipe(epochs=2), resume=tmp_path / "run")
    again, same = run(Regularized(model(seed=5)), recipe(epochs=2), resume=tmp_path / "run")
    assert again == reports
    assert all(torch.equal(weights[n], same[n]) for n in weights)


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    broken = model()
    with torch.no_grad():
        broken.encoder.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="the loss is nan"):
        run(Regularized(broken), recipe(epochs=1))


# -- making ------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(layers=st.integers(1, 4), hidden=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_new_model_is_saved_under_awd_lstms_names(
    tmp_path_factory: pytest.TempPathFactory, layers: int, hidden: int, seed: int
) -> None:
    made = new_language_model(11, 6, hidden, layers, generator=torch.Generator().manual_seed(seed))
    path = tmp_path_factory.mktemp("made") / "model.pt"
    torch.save(awd_state_dict(made), path)
    read = load_language_model(path)
    assert read.tied
    tokens = text(30, 11)[:, None]
    assert torch.allclose(read.log_probs(tokens)[0], made.log_probs(tokens)[0], atol=1e-6)


def test_a_pair_has_no_name_in_awd_lstm() -> None:
    with pytest.raises(ValueError, match="is a pair"):
        awd_state_dict(model({"weight_hh_l0": 3}))
