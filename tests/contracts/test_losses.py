"""What every loss promises; a new file in tagreel/losses is found and held to it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch

import tagreel.losses


def _losses():
    for module in pkgutil.iter_modules(tagreel.losses.__path__):
        if not module.name.startswith("_"):
            found = importlib.import_module(f"tagreel.losses.{module.name}")
            for name, value in vars(found).items():
                if inspect.isclass(value) and value.__module__ == found.__name__ and not name.startswith("_"):
                    yield pytest.param(value, id=name)


every_loss = pytest.mark.parametrize("loss_class", list(_losses()))


def _problem(videos=6, classes=5):
    torch.manual_seed(0)
    logits = torch.randn(videos, classes)
    labels = (torch.rand(videos, classes) < 0.5).float()
    labels[0, :2] = torch.tensor([0.0, 1.0])
    return logits, labels


def test_the_walk_finds_the_losses():
    assert "CrossEntropy" in {param.id for param in _losses()}


@every_loss
def test_all_options_are_keywords_with_a_default(loss_class):
    for option in inspect.signature(loss_class).parameters.values():
        assert option.kind is option.KEYWORD_ONLY
        assert option.default is not option.empty


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_in_float32(loss_class, dtype):
    logits, labels = _problem()
    loss = loss_class()(logits.to(dtype), labels)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_class()(logits, labels).item(), rel=0.01)


@every_loss
def test_a_step_of_each_video_towards_its_labels_lowers_the_loss(loss_class):
    # Not of each logit: some losses leave alone what is right already, others let the classes compete.
    logits, labels = _problem()
    logits.requires_grad_()
    grad = torch.autograd.grad(loss_class()(logits, labels), logits)[0]
    assert ((grad * (2 * labels - 1)).sum(1) < 0).all()


@every_loss
def test_a_logit_on_the_wrong_side_is_pushed_to_the_right_one(loss_class):
    _, labels = _problem()
    logits = (1 - 2 * labels).requires_grad_()
    grad = torch.autograd.grad(loss_class()(logits, labels), logits)[0]
    assert (grad * (2 * labels - 1) < 0).all()


@every_loss
def test_descent_learns_the_labels(loss_class):
    logits, labels = _problem()
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss_class()(logits, labels).backward()
        optimizer.step()
    for row, truth in zip(logits, labels, strict=True):
        assert row[truth == 1].min() > row[truth == 0].max()


@every_loss
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_sure_answers_right_or_wrong_are_finite(loss_class, size):
    _, labels = _problem()
    right = size * (2 * labels - 1)
    losses = []
    for logits in (right, -right):
        logits = logits.clone().requires_grad_()
        loss = loss_class()(logits, labels)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
        losses.append(loss.item())
    # A softmax over several labels keeps their entropy.
    assert losses[0] < 0.01 * losses[1]


@every_loss
def test_autocast_changes_nothing(loss_class):
    logits, labels = _problem()
    plain = loss_class()(logits, labels, labels)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_class()(logits, labels, labels), plain)
    x = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_class()(1e4 * x, labels)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


@every_loss
def test_a_video_without_labels_and_one_with_all_are_finite(loss_class):
    logits, _ = _problem()
    logits.requires_grad_()
    for labels in (torch.zeros_like(logits), torch.ones_like(logits)):
        loss = loss_class()(logits, labels)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@every_loss
def test_twice_the_weight_is_twice_the_loss(loss_class):
    logits, labels = _problem()
    rated = (torch.rand(labels.shape) < 0.7).float()
    once, twice = (loss_class()(logits, labels, weight * rated) for weight in (1, 2))
    torch.testing.assert_close(twice, 2 * once)


@every_loss
def test_it_is_the_mean_over_videos(loss_class):
    logits, labels = _problem()
    rows = [loss_class()(logits[b : b + 1], labels[b : b + 1]).item() for b in range(len(logits))]
    assert loss_class()(logits, labels).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)


@every_loss
def test_weights_of_one_change_nothing_and_of_zero_leave_nothing(loss_class):
    logits, labels = _problem()
    logits.requires_grad_()
    plain = loss_class()(logits, labels)
    torch.testing.assert_close(loss_class()(logits, labels, torch.ones_like(labels)), plain)
    nothing = loss_class()(logits, labels, torch.zeros_like(labels))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@every_loss
def test_what_nobody_rated_says_nothing(loss_class):
    logits, labels = _problem()
    rated = (torch.rand(labels.shape) < 0.5).float()
    expected = loss_class()(logits, labels, rated)
    wrong_logits = torch.where(rated == 0, 50.0, logits)
    wrong_labels = torch.where(rated == 0, 1 - labels, labels)
    torch.testing.assert_close(loss_class()(wrong_logits, wrong_labels, rated), expected)


@every_loss
def test_labels_between_0_and_1_are_taken(loss_class):
    logits, labels = _problem()
    mixed = 0.3 * labels + 0.7 * labels.flip(0)
    losses = [loss_class()(logits, y).item() for y in (labels, mixed, labels.flip(0))]
    assert torch.tensor(losses).isfinite().all()
    assert min(losses[0], losses[2]) < losses[1] < max(losses[0], losses[2])


@every_loss
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(loss_class):
    logits, labels = _problem()
    found = loss_class()(logits.cuda(), labels.cuda()).cpu()
    torch.testing.assert_close(found, loss_class()(logits, labels))
