"""What every head promises; a new file in tagreel/heads is found and held to it."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil

import pytest
import torch

import tagreel.heads

DIM, CLASSES = 5, 7


def _heads():
    for module in pkgutil.iter_modules(tagreel.heads.__path__):
        if not module.name.startswith("_"):
            found = importlib.import_module(f"tagreel.heads.{module.name}")
            for name, value in vars(found).items():
                if inspect.isclass(value) and value.__module__ == found.__name__ and not name.startswith("_"):
                    yield pytest.param(value, id=name)


every_head = pytest.mark.parametrize("head_class", list(_heads()))
both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def _made(head_class, *, training=False):
    torch.manual_seed(0)
    return head_class(DIM, CLASSES).train(training)


def _descriptors(videos=6):
    torch.manual_seed(1)
    return torch.randn(videos, DIM)


def test_the_walk_finds_the_heads():
    assert {"Logistic", "MixtureOfExperts"} <= {param.id for param in _heads()}


@every_head
def test_is_made_of_two_widths_alone_and_all_options_are_keywords(head_class):
    dim, classes, *options = inspect.signature(head_class).parameters.values()
    assert (dim.name, classes.name) == ("dim", "classes")
    for option in options:
        assert option.kind is option.KEYWORD_ONLY
        assert option.default is not option.empty


@every_head
@both_modes
@pytest.mark.parametrize("videos", [1, 6])
def test_output_is_a_row_of_classes_a_video(head_class, training, videos):
    assert _made(head_class, training=training)(_descriptors(videos)).shape == (videos, CLASSES)


@every_head
def test_output_is_logits(head_class):
    logits = _made(head_class)(100 * _descriptors())
    assert logits.max() > 1  # no probability is
    assert logits.min() < 0


@every_head
@both_modes
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_logits_and_gradients_are_finite_however_large_the_input(head_class, training, size):
    head, x = _made(head_class, training=training), (size * _descriptors()).requires_grad_()
    logits = head(x)
    grads = torch.autograd.grad(logits.sum() + logits.square().mean(), [x, *head.parameters()])
    assert logits.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


@every_head
@both_modes
def test_gradients_reach_every_parameter_and_video(head_class, training):
    head, x = _made(head_class, training=training), _descriptors().requires_grad_()
    logits = head(x)
    (logits * torch.randn(logits.shape)).sum().backward()
    assert x.grad.any(dim=1).all()
    for name, parameter in head.named_parameters():
        assert parameter.grad.any(), name


@every_head
def test_a_prior_is_the_probability_that_every_class_begins_with(head_class):
    if "prior" not in inspect.signature(head_class).parameters:
        pytest.skip("begins with even chances")
    torch.manual_seed(0)
    head = head_class(DIM, CLASSES, prior=0.01).eval()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1 and "gates" not in name:
                parameter.zero_()
    expected = torch.full((6, CLASSES), 0.01)
    if "null_expert" in inspect.signature(head_class).parameters:
        assert (torch.sigmoid(head(_descriptors())) < 0.01).all()
        head = head_class(DIM, CLASSES, prior=0.01, null_expert=False).eval()
        with torch.no_grad():
            head.experts.weight.zero_()
    torch.testing.assert_close(torch.sigmoid(head(_descriptors())), expected)


@every_head
def test_every_class_depends_on_the_descriptor(head_class):
    head, x = _made(head_class), _descriptors(1).requires_grad_()
    for logit in head(x)[0]:
        assert torch.autograd.grad(logit, x, retain_graph=True)[0].any()


@every_head
def test_each_video_is_classified_by_itself_in_evaluation(head_class):
    head, x = _made(head_class), _descriptors()
    together = head(x)
    for b in range(len(x)):
        torch.testing.assert_close(head(x[b : b + 1]), together[b : b + 1], rtol=1e-4, atol=1e-5)


@every_head
@both_modes
def test_the_same_seed_gives_the_same_numbers(head_class, training):
    head, x = _made(head_class, training=training), _descriptors()
    results = []
    for twin in (copy.deepcopy(head), copy.deepcopy(head)):
        torch.manual_seed(2)
        results.append(twin(x))
    assert torch.equal(*results)


@every_head
def test_weights_travel_as_a_state_dict(head_class):
    head, x = _made(head_class), _descriptors()
    torch.manual_seed(9)
    other = head_class(DIM, CLASSES).eval()
    assert not torch.equal(other(x), head(x))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(x), head(x))


@every_head
@both_modes
def test_bfloat16_is_close_to_float32(head_class, training):
    head, x = _made(head_class, training=training), _descriptors(32)
    half, mixed = copy.deepcopy(head).to(torch.bfloat16), copy.deepcopy(head)
    torch.manual_seed(2)
    expected = head(x)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        out_mixed = mixed(x)
    torch.manual_seed(2)
    for found in (half(x.bfloat16()).float(), out_mixed.float()):
        assert ((found - expected).norm() / expected.norm()).item() < 0.02
    out_mixed.float().square().sum().backward()
    for parameter in mixed.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@every_head
def test_exported_it_gives_the_same_for_any_number_of_videos(head_class):
    head = _made(head_class)
    program = torch.export.export(
        head, (_descriptors(),), dynamic_shapes=({0: torch.export.Dim("B")},)
    ).module()
    for B in (1, 2, 9):
        x = _descriptors(B)
        torch.testing.assert_close(program(x), head(x))


@every_head
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(head_class):
    head, x = _made(head_class), _descriptors()
    expected = head(x)
    torch.testing.assert_close(head.cuda()(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)
