from __future__ import annotations

import copy

import pytest
import torch

from tagreel.heads.mixture_of_experts import MixtureOfExperts


def _probabilities(head, x):
    """The mixture as the papers write it: softmax gates, sigmoid experts, a null expert that says no."""
    E, gates = head.num_experts, head.gates.weight
    if head.reduce is not None:
        gates = gates @ head.reduce.weight
    units = E + 1 if head.gates.out_features > head.classes * E else E
    rows = []
    for row in x:
        mixed = []
        for c in range(head.classes):
            raised = [torch.exp((gates[c * units + e] * row).sum()) for e in range(units)]
            p = torch.zeros((), dtype=x.dtype)
            for e in range(E):
                score = (head.experts.weight[c * E + e] * row).sum() + head.experts.bias[c * E + e]
                p = p + raised[e] / sum(raised) / (1 + torch.exp(-score))
            mixed.append(p)
        rows.append(torch.stack(mixed))
    return torch.stack(rows)


@pytest.mark.parametrize("gate_rank", [None, 2])
@pytest.mark.parametrize("null_expert", [True, False])
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_logits_are_those_of_the_mixed_probabilities(experts, null_expert, gate_rank):
    torch.manual_seed(0)
    head = MixtureOfExperts(4, 3, experts=experts, null_expert=null_expert, gate_rank=gate_rank)
    with torch.no_grad():
        head.experts.bias.normal_()
    exact, x = copy.deepcopy(head).double(), torch.randn(6, 4)
    p = _probabilities(exact, x.double())
    torch.testing.assert_close(head(x).double(), torch.log(p / (1 - p)), rtol=1e-5, atol=1e-5)
    weights = torch.randn(6, 3, dtype=torch.float64)
    found = torch.autograd.grad((head(x).double() * weights).sum(), list(head.parameters()))
    expected = torch.autograd.grad((torch.log(p / (1 - p)) * weights).sum(), list(exact.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)


def test_a_lone_expert_without_null_is_logistic_regression():
    torch.manual_seed(0)
    head, x = MixtureOfExperts(4, 3, experts=1, null_expert=False), torch.randn(6, 4)
    torch.testing.assert_close(head(x), head.experts(x))


def test_stays_finite_and_exact_where_the_logit_of_the_probability_overflows():
    torch.manual_seed(0)
    head = MixtureOfExperts(4, 3, experts=2, null_expert=False)
    x = torch.randn(8, 4)
    x[:4] *= 500
    p = _probabilities(head, x)
    naive = torch.log(p / (1 - p))
    assert not naive[:4].isfinite().all()
    logits = head(x)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[4:], naive[4:])
    grads = torch.autograd.grad(logits.sum(), list(head.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


def test_without_evidence_the_null_expert_holds_its_share():
    # Zero input: every gate is equal and every expert says one half.
    x = torch.zeros(1, 4)
    with_null = MixtureOfExperts(4, 3, experts=2)(x).sigmoid()
    without = MixtureOfExperts(4, 3, experts=2, null_expert=False)(x).sigmoid()
    torch.testing.assert_close(with_null, torch.full((1, 3), 1 / 3))
    torch.testing.assert_close(without, torch.full((1, 3), 1 / 2))


@pytest.mark.parametrize(
    ("experts", "null_expert", "expected"),
    [(2, True, 27_173_592), (2, False, 21_740_760), (8, False, 86_963_040)],
)
def test_parameters_of_the_video_level_models(experts, null_expert, expected):
    with torch.device("meta"):
        head = MixtureOfExperts(1152, 4716, experts=experts, null_expert=null_expert)
    assert sum(p.numel() for p in head.parameters()) == expected


@pytest.mark.parametrize("null_expert", [True, False])
def test_parameters_of_gates_of_low_rank(null_expert):
    D, C, E, r = 1024, 4716, 2, 64
    with torch.device("meta"):
        head = MixtureOfExperts(D, C, experts=E, null_expert=null_expert, gate_rank=r)
    expected = D * r + r * C * (E + null_expert) + D * C * E + C * E
    assert sum(p.numel() for p in head.parameters()) == expected


@pytest.mark.parametrize("options", [{"experts": 0}, {"gate_rank": 0}])
def test_counts_below_one_are_named(options):
    with pytest.raises(ValueError, match=r"experts=\d, gate_rank=(None|0); expected at least 1"):
        MixtureOfExperts(4, 3, **options)
