from __future__ import annotations

import pytest
import torch

from tagreel.errors import RecipeError
from tagreel.heads.separated_tasks import SeparatedTasks

VERTICALS = ["Games", "Arts", "", "Games", "Arts", "News", "Games"]


@pytest.fixture
def vocabulary(tmp_path):
    """Seven classes of four verticals, one of them without a name; the rows are not in order."""
    lines = [f'{index},"Name, {index}",{vertical}' for index, vertical in enumerate(VERTICALS)]
    path = tmp_path / "vocabulary.csv"
    path.write_text("\n".join(["Index,Name,Vertical1", *reversed(lines)]), encoding="utf-8")
    return path


def _made(path=None, counts=(1, 2, 3, 1)):
    return SeparatedTasks(
        10, 7, widths=(2, 3, 1, 4), classes_per_task=counts, vocabulary=None if path is None else str(path)
    )


def _own(head, x, task, number):
    """The logit of a task's own class `number`, from its part of the descriptor alone."""
    first = sum(head.widths[:task])
    part, linear = x[:, first : first + head.widths[task]], head.tasks[task]
    return [sum(row * linear.weight[number]) + linear.bias[number] for row in part]


def test_each_class_is_classified_by_the_task_of_its_vertical(vocabulary):
    torch.manual_seed(0)
    head, x = _made(vocabulary), torch.randn(3, 10)
    head.prepare()
    with torch.no_grad():
        for task in head.tasks:
            task.bias.normal_()
    logits, names, seen = head(x), ["(Unknown)", "Arts", "Games", "News"], [0, 0, 0, 0]
    for c, vertical in enumerate(VERTICALS):
        task = names.index(vertical or "(Unknown)")
        torch.testing.assert_close(logits[:, c], torch.stack(_own(head, x, task, seen[task])))
        seen[task] += 1
    assert tuple(seen) == head.classes_per_task


def test_without_a_vocabulary_the_tasks_take_the_classes_as_they_come():
    torch.manual_seed(0)
    head, x = _made(), torch.randn(3, 10)
    head.prepare()
    expected = [torch.stack(_own(head, x, t, i)) for t, n in enumerate((1, 2, 3, 1)) for i in range(n)]
    torch.testing.assert_close(head(x), torch.stack(expected, dim=1))


def test_the_order_travels_with_the_weights(vocabulary):
    head, x = _made(vocabulary), torch.randn(3, 10)
    head.prepare()
    vocabulary.unlink()
    other = _made(vocabulary)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(x), head(x))
    assert "order" in head.state_dict()


def test_gradients_stay_inside_a_task(vocabulary):
    head = _made(vocabulary)
    head.prepare()
    x = torch.randn(2, 10, requires_grad=True)
    (grad,) = torch.autograd.grad(head(x)[:, 1].sum(), x)  # of Arts, whose descriptor is the second
    assert grad[:, 2:5].all()
    assert not grad[:, :2].any()
    assert not grad[:, 5:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (2, 3)}, "2 widths and 0 classes_per_task; expected one a task"),
        (
            {"widths": (2, 4), "classes_per_task": (3, 4)},
            r"widths=\(2, 4\) are 6 together; the descriptor is 5 wide",
        ),
        (
            {"widths": (2, 3), "classes_per_task": (3, 5)},
            r"classes_per_task=\(3, 5\) are 8 together; there are 7",
        ),
    ],
)
def test_tasks_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SeparatedTasks(5, 7, **options)


def test_a_vocabulary_that_does_not_fit_is_named(vocabulary, tmp_path):
    with pytest.raises(RecipeError, match=r"verticals of \(1, 2, 3, 1\) classes; .* \(2, 2, 2, 1\)"):
        _made(vocabulary, counts=(2, 2, 2, 1)).prepare()
    with pytest.raises(RecipeError, match=r"missing\.csv"):
        _made(tmp_path / "missing.csv").prepare()
    other = tmp_path / "other.csv"
    other.write_text("id,name\n0,x\n")
    with pytest.raises(RecipeError, match="columns Index and Vertical1"):
        _made(other).prepare()
    other.write_text("Index,Vertical1\n0,Games\n2,Arts\n")
    with pytest.raises(RecipeError, match="each Index from 0 to 1 once"):
        _made(other).prepare()
    other.write_text("Index,Vertical1\n0,Games\n0,Arts\n")
    with pytest.raises(RecipeError, match="each Index from 0 to 1 once"):
        _made(other).prepare()
    other.write_bytes(b"Index,Vertical1\n0,\xff\n")
    with pytest.raises(RecipeError, match=r"other\.csv"):
        _made(other).prepare()
