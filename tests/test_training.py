"""The practice of training: each part against what its definition says, and runs that are stopped and go on."""

import csv
import math
import random
from dataclasses import asdict, replace
from functools import partial
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cnnkern
from cnnkern.bench import canvas
from cnnkern.training import (
    RECIPES,
    Recipe,
    Trainer,
    averages,
    checks,
    losses,
    monitoring,
    plots,
    schedules,
    search,
    transfer,
)
from cnnkern.training import checkpoint as checkpoints
from cnnkern.training.augmentation import random_affine
from cnnkern.training.data import Data
from cnnkern.training.initialisation import initialise

SMALL = Recipe(epochs=4, lr=0.05, batch=8, weight_decay=1e-3)


def network(dropout=0.0):
    """Plain and fused convolutions, and a classifier of three classes."""
    torch.manual_seed(0)
    blocks = [cnnkern.Conv2d(2, 6, 3, padding=1), nn.ReLU(), cnnkern.ConvBNReLU2d(6, 8, 3, stride=2, padding=1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def data():
    """Images of three classes by their brightness, which are easily told apart."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    images = 0.2 * torch.rand(60, 2, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1) / 4
    sets = [TensorDataset(*part) for part in zip(images.split(20), labels.split(20), strict=True)]
    mean = torch.full((2, 1, 1), 0.35)
    return Data(*sets, classes=("dark", "grey", "light"), size=8, mean=mean, deviation=mean)


# --- the loss


def test_label_smoothing_is_cross_entropy_with_smoothed_labels():
    logits, labels, e = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2]), 0.1
    smoothed = (1 - e) * F.one_hot(labels, 4) + e / 4
    expected = -(smoothed * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses.cross_entropy(logits, labels, label_smoothing=e), expected)


@pytest.mark.parametrize(
    "form", [lambda a, b, c: (a, b, c), lambda a, b, c: (a, (b, c)), lambda a, b, c: (a, b, None, c)]
)
def test_auxiliary_classifiers_count_with_their_weight(form):
    main, *auxiliary = logits = torch.randn(3, 5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2])
    expected = F.cross_entropy(main, labels) + 0.4 * sum(F.cross_entropy(each, labels) for each in auxiliary)
    output = form(*logits)
    torch.testing.assert_close(losses.cross_entropy(output, labels, auxiliary_weight=0.4), expected)
    assert losses.logits_of(output) is output[0]


def test_elastic_net_has_the_gradient_of_weight_decay():
    weights = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    gradients = torch.autograd.grad(losses.elastic_net(weights, l1=0.3, l2=0.2), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        torch.testing.assert_close(gradient, 0.3 * weight.sign() + 0.2 * weight)


# --- the rate


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (schedules.constant, {0: 1, 99: 1}),
        (schedules.step, {0: 1, 32: 1, 33: 0.1, 66: 0.1, 67: 0.01}),
        (schedules.exponential, {0: 1, 50: 0.1, 100: 0.01}),
        (schedules.inverse_time, {0: 1, 50: 1 / 5.5, 100: 0.1}),
        (schedules.cosine, {0: 1, 50: 0.5, 75: 0.5 - math.sqrt(0.125), 100: 1, 150: 0.5}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_rate_over_a_hundred_steps(schedule, rates):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    following = schedule(optimizer, 100)
    seen = []
    for _ in range(max(rates) + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        following.step()
    assert {step: pytest.approx(seen[step]) for step in rates} == rates


def test_the_rate_falls_where_the_validation_loss_does_not(data, monkeypatch):
    recipe = replace(SMALL, epochs=5, schedule=partial(schedules.plateau, patience=1))
    validation_losses = iter([1.0, 0.9, 0.9, 0.9, 0.9])
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: (next(validation_losses), 0.5))
    rates = [row.lr for row in Trainer(network(), data, recipe).fit()]
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.005])


# --- recipes


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name, data):
    recipe = replace(RECIPES[name], epochs=RECIPES[name].cycles, batch=RECIPES[name].batch and 8)
    trainer = Trainer(network(), data, replace(recipe, test_scales=()))
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    row = trainer.fit()[-1]
    assert math.isfinite(row.train_loss)
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)]
    assert moved[-2:] == [True, True]
    assert all(moved) is (recipe.backbone_rate > 0)
    assert 0 <= trainer.test()[1] <= 1


def test_a_run_learns_and_counts_its_images(data):
    trainer = Trainer(network(), data, replace(SMALL, epochs=12))
    counted = []
    for row in trainer.epochs(lambda count, loss: counted.append(count)):
        assert row.gap == row.train_accuracy - row.validation_accuracy
    assert counted[:3] == [8, 8, 4]
    assert trainer.history[0].train_loss == pytest.approx(math.log(3), abs=0.5)
    assert trainer.test()[1] == 1.0
    assert 1e-5 < row.update_ratio < 0.1


# --- a run that is stopped


@pytest.mark.parametrize(
    "recipe",
    [
        replace(SMALL, polyak=0.9, augment=(random_affine,), schedule=schedules.cosine),
        replace(SMALL, cycles=2, schedule=schedules.cosine, optimizer=torch.optim.Adam, lr=0.01),
        replace(SMALL, schedule=schedules.plateau, batch=None, optimizer=torch.optim.LBFGS, weight_decay=0.0, lr=0.1),
    ],
    ids=["polyak", "snapshots", "full batch"],
)
def test_a_run_goes_on_bit_for_bit(recipe, data, tmp_path):
    whole = Trainer(network(0.5), data, recipe, seed=7)
    whole.fit()
    stopped = Trainer(network(0.5), data, recipe, seed=7, out=tmp_path)
    next(epochs := stopped.epochs())
    next(epochs)
    stopped.step(torch.randn(4, 2, 8, 8), torch.tensor([0, 1, 2, 0]))  # in the third epoch, and lost
    torch.manual_seed(0)
    resumed = Trainer(network(0.5), data, recipe, seed=7, out=tmp_path)
    resumed.restore(checkpoints.load(tmp_path / "checkpoint.pt"))
    resumed.fit()
    for name, value in whole.predictor().state_dict().items():
        assert torch.equal(value, resumed.predictor().state_dict()[name]), name
    for ours, theirs in zip(whole.history, resumed.history, strict=True):
        assert asdict(ours) | {"seconds": 0} == asdict(theirs) | {"seconds": 0}
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [float(row["train_loss"]) for row in rows] == [row.train_loss for row in whole.history]
    lines = ElementTree.parse(tmp_path / "curves.svg").findall(".//{*}polyline")
    assert sum(line.get("stroke") != canvas.GRID for line in lines) == 7
    assert Image.open(tmp_path / "curves.png").size == (4 * plots.WIDTH * canvas.FINE, plots.HEIGHT * canvas.FINE)
    assert len(list(csv.DictReader((tmp_path / "activations.csv").open()))) == 4


@pytest.mark.parametrize("change", [{"recipe": replace(SMALL, lr=0.1)}, {"seed": 1}], ids=["recipe", "seed"])
def test_a_checkpoint_of_another_run_is_refused(change, data):
    state = Trainer(network(), data, SMALL).state()
    with pytest.raises(ValueError, match=next(iter(change))):
        Trainer(network(), data, **{"recipe": SMALL, **change}).restore(state)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    checkpoints.save({"epoch": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(AttributeError):  # a local function cannot be pickled: the new file ends in its middle
        checkpoints.save({"epoch": torch.ones(9), "function": lambda: None}, tmp_path / "checkpoint.pt")
    assert checkpoints.load(tmp_path / "checkpoint.pt") == {"epoch": 1}


# --- averages


def test_polyak_average_of_each_step(data):
    model = network()
    average = averages.polyak(model, 0.9)
    average.update_parameters(model)  # the first makes them equal
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(step + 1)
        average.update_parameters(model)
        expected = {name: 0.9 * old + 0.1 * model.state_dict()[name] for name, old in expected.items()}
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])


def test_snapshots_are_the_ends_of_the_cycles(data):
    trainer = Trainer(network(), data, replace(SMALL, epochs=6, cycles=3, schedule=schedules.cosine))
    ends = [{name: value.clone() for name, value in trainer.model.state_dict().items()} for _ in trainer.epochs()][1::2]
    images = torch.randn(4, 2, 8, 8)
    probabilities = []
    for state, kept in zip(ends, trainer.snapshots, strict=True):
        assert all(torch.equal(state[name], kept[name]) for name in state)
        trainer.model.load_state_dict(state)
        probabilities.append(trainer.model.eval()(images).softmax(1))
    ensemble = trainer.predictor().eval()
    torch.testing.assert_close(ensemble(images).exp(), torch.stack(probabilities).mean(0))
    assert trainer.history[2].lr == pytest.approx(SMALL.lr)  # a warm restart


# --- transfer


def test_frozen_layers_stay_and_others_follow(data):
    frozen = Trainer(network(), data, replace(SMALL, backbone_rate=0.0))
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    frozen.fit()
    changed = {name for name, value in frozen.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"6.weight", "6.bias"}  # not even the running statistics
    groups = transfer.parameter_groups(network(), lr=0.1, backbone_rate=0.1)
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(2, 0.1), (5, pytest.approx(0.01))]


def test_weights_of_another_number_of_classes():
    source, model = network(), network()
    source[6] = nn.Linear(8, 5)
    with torch.no_grad():
        source[0].weight.add_(1)
    assert transfer.load_backbone(model, source.state_dict()) == ["6.weight", "6.bias"]
    assert torch.equal(model[0].weight, source[0].weight)
    with pytest.raises(RuntimeError, match="none of the weights"):
        transfer.load_backbone(model, {"another": torch.ones(1)})


# --- checks


def batch(data):
    return next(iter(torch.utils.data.DataLoader(data.train, 12)))


def test_every_check_is_passed(data):
    images, labels = batch(data)
    model = network(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = checks.gradients(model, images[:2])
    assert len(gradients) == 9
    results = [*gradients, checks.first_loss(model, images, labels, 3), checks.overfit(model, images, labels, lr=0.01)]
    assert [result for result in results if not result.passed] == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return dy


class Wrong(nn.Module):
    def forward(self, x):
        return WrongGradient.apply(x)


def test_a_wrong_layer_fails_its_checks(data):
    images, labels = batch(data)
    model = network()  # and with it the seed of what is drawn
    model[1] = Wrong()
    failed = [check.name for check in checks.gradients(model, images[:2]) if not check.passed]
    assert failed == ["gradient of 1, Wrong()", "gradient of the model"]
    with torch.no_grad():
        model[6].weight.mul_(50)
    assert not checks.first_loss(model, images, labels, 3).passed
    assert not checks.overfit(model, images, labels, steps=2).passed


# --- monitoring


def test_update_ratio_of_plain_gradient_descent():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).square().sum().backward()
    expected = 0.1 * model.weight.grad.norm() / model.weight.detach().norm()
    with monitoring.update_ratios(model) as ratios:
        optimizer.step()
    assert ratios == [pytest.approx(expected.item(), rel=1e-4)]


def test_initialisation_decides_what_reaches_the_last_layer():
    """Twelve layers of ReLUs: std 0.01 dies out, Xavier's loses half of the variance in each, He's keeps it."""
    torch.manual_seed(0)
    deep = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(256, 256), nn.ReLU())))
    last = {}
    for how in ("small", "xavier", "msra"):
        rows = monitoring.activation_statistics(initialise(deep, how), torch.randn(64, 256))
        assert [row.layer for row in rows] == [str(number) for number in range(24)]
        assert 0.3 < rows[-1].zeros < 0.7
        last[how] = rows[-2].deviation
    assert last["small"] < 1e-9
    assert last["xavier"] == pytest.approx(2**-5.5, rel=0.5)
    assert last["msra"] == pytest.approx(1.4, rel=0.5)


# --- search


def test_random_search_is_even_in_the_logarithm_and_looks_at_validation_only(data):
    draws = [search.draw({"lr": (1e-4, 1.0)}, source)["lr"] for source in [random.Random(0)] for _ in range(400)]
    assert all(1e-4 <= value <= 1 for value in draws)
    for decade in range(4):
        assert sum(10**-4 <= value / 10**decade < 10**-3 for value in draws) == pytest.approx(100, abs=35)
    blind = replace(data, test=None)
    trials = list(search.random_search(network, blind, replace(SMALL, epochs=2), trials=3, space={"lr": (1e-6, 0.1)}))
    assert len({trial.values["lr"] for trial in trials}) == 3
    assert search.best(trials).accuracy == max(trial.accuracy for trial in trials)
    assert search.around(SMALL) == {"lr": (SMALL.lr / 30, SMALL.lr * 30), "weight_decay": (1e-3 / 30, 1e-3 * 30)}
    assert list(search.around(RECIPES["lbfgs"])) == ["lr"]
