from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tagreel.errors import DataError, RecipeError
from tagreel.files import read_tensors, write_tensors
from tagreel.layers.masked_batch_norm import MaskedBatchNorm
from tagreel.storage import EIGHT_BITS, STORAGES, decode, encode, size


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def through(tensor: torch.Tensor, storage: str) -> torch.Tensor:
    return decode(encode({"x": tensor}, storage), path="here")["x"]


def relative(error: torch.Tensor, tensor: torch.Tensor) -> float:
    return float(error.double().norm() / tensor.double().norm())


def bfloat16_by_hand(number: float) -> float:
    """The upper 16 bits, rounded to the nearest, to even among equals."""
    bits = struct.unpack("<I", struct.pack("<f", number))[0]
    upper, rest = bits >> 16, bits & 0xFFFF
    if rest > 0x8000 or (rest == 0x8000 and upper % 2):
        upper += 1
    return struct.unpack("<f", struct.pack("<I", upper << 16))[0]


def test_bfloat16_is_the_upper_half_rounded_to_nearest_even():
    ties = [1 + k * 2**-8 for k in range(8)] + [-3 * (1 + 2**-8), 1e-40, 3.4e37]
    numbers = torch.tensor(ties + drawn(500).tolist())
    assert encode({"x": numbers}, "bfloat16")["x"].dtype == torch.bfloat16
    expected = [bfloat16_by_hand(number) for number in numbers.tolist()]
    assert through(numbers, "bfloat16").tolist() == expected


def test_int8_has_a_scale_and_an_offset_a_row():
    tensor = drawn(40, 5, 100) * torch.logspace(-6, 6, 40)[:, None, None] + 1
    stored = encode({"x": tensor}, "int8")
    assert {name: (value.dtype, tuple(value.shape)) for name, value in stored.items()} == {
        "x": (torch.uint8, (40, 5, 100)),
        "x.scale": (torch.float32, (40,)),
        "x.offset": (torch.float32, (40,)),
    }
    decoded = through(tensor, "int8")
    for row in range(40):
        numbers = tensor[row].flatten().tolist()
        low, step = min(numbers), (max(numbers) - min(numbers)) / 255
        for number, code, found in zip(
            numbers, stored["x"][row].flatten().tolist(), decoded[row].flatten().tolist(), strict=True
        ):
            assert abs(code - (number - low) / step) < 0.501
            assert found == pytest.approx(low + step * code, rel=1e-5, abs=step / 1000)


def nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return np.abs(values[:, None] - levels[None]).argmin(1)


def lloyd(values: np.ndarray, levels: np.ndarray, *, iterations: int) -> np.ndarray:
    """k-means as it is in books."""
    for _ in range(iterations):
        mine = nearest(values, levels)
        levels = np.array(
            [values[mine == k].mean() if (mine == k).any() else level for k, level in enumerate(levels)]
        )
    return levels


DISTRIBUTIONS = {
    "normal": drawn(200, 100),
    "of long tails": drawn(200, 100) * drawn(100, 200).T ** 3,
    "even": torch.linspace(-1, 3, 20_000).view(200, 100),
    "half zero": torch.where(drawn(200, 100) > 0, drawn(100, 200).T, 0.0),
    "in two heaps": drawn(200, 100) * 0.01 + torch.where(drawn(100, 200).T > 0, 5.0, -3.0),
}


@pytest.mark.parametrize("tensor", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_a_codebook_is_better_than_the_references(tensor):
    """Their choices are equal steps, quantiles, and k-means."""
    values = tensor.double().numpy().ravel()
    stored = encode({"x": tensor}, "codebook")
    levels, codes = stored["x.codebook"].double().numpy(), stored["x"].numpy().ravel()
    assert levels.shape == (256,)
    assert (np.diff(levels) >= 0).all()
    # Ties and roundings apart, everything has the nearest level.
    off = np.abs(values - levels[codes])
    np.testing.assert_allclose(off, np.abs(values[:, None] - levels[None]).min(1), rtol=1e-4, atol=1e-7)
    even = np.linspace(values.min(), values.max(), 256)
    quantiles = np.quantile(values, (np.arange(256) + 0.5) / 256)
    for others in (even, quantiles, lloyd(values, quantiles, iterations=10)):
        reached = np.square(values - others[nearest(values, others)]).sum()
        assert np.square(off).sum() < 1.01 * reached


def test_a_codebook_of_a_normal_is_nearly_the_best_there_is():
    """Panter and Dite: √3π/2 / 256² of the variance for many levels; half that error is impossible."""
    tensor = drawn(3000, 1000)  # more than the sample that the levels are found on
    bound = (np.sqrt(3) * np.pi / 2) ** 0.5 / 256
    assert bound / 1.05 < relative(through(tensor, "codebook") - tensor, tensor) < bound * 1.05


def test_what_lies_far_out_has_a_level():
    tensor = drawn(3000, 1000) / 100
    tensor[7, 7], tensor[8, 8] = 30.0, -20.0
    decoded = through(tensor, "codebook")
    assert decoded[7, 7] == pytest.approx(30, rel=0.02)
    assert decoded[8, 8] == pytest.approx(-20, rel=0.02)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_same_tensor_is_stored_the_same_way_twice(storage):
    tensor = drawn(1200, 1000)
    first, second = (encode({"x": tensor}, storage) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("storage", "error"),
    [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8), ("int8", 0.011), ("codebook", 0.0075)],
)
def test_how_far_each_is_off(storage, error):
    tensor = drawn(300, 200)
    assert relative(through(tensor, storage) - tensor, tensor) <= error
    # One that lies in memory in another order.
    turned = drawn(200, 300).T
    assert relative(through(turned, storage) - turned, turned) <= error


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [
        ([1.0, -2.003, 65504.0], torch.float16),
        ([1.0, -2.003, 65520.0], torch.bfloat16),  # the first that would be infinite
        ([1e-7, 2.3e-7, -4.1e-7], torch.bfloat16),  # float16 has next to no digits there
        ([0.0, 0.0, 0.0], torch.float16),
    ],
)
def test_float16_is_left_where_bfloat16_is_nearer(numbers, kept):
    tensor = torch.tensor(numbers)
    assert encode({"x": tensor}, "float16")["x"].dtype == kept
    torch.testing.assert_close(through(tensor, "float16").float(), tensor, rtol=2**-8, atol=0)


@pytest.mark.parametrize("storage", EIGHT_BITS)
def test_in_8_bits_are_large_tensors_of_two_or_more_dimensions_alone(storage):
    norm = MaskedBatchNorm(20_000)
    tensors = {"large": drawn(17, 1001), "small": drawn(17, 1000), **norm.state_dict()}
    stored = encode(tensors, storage)
    assert stored.pop("large").dtype == torch.uint8
    for name, tensor in tensors.items():
        if name != "large":
            assert torch.equal(stored.pop(name), tensor)
    assert {name.partition(".")[0] for name in stored} == {"large"}


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_no_float_stays_as_it_is(storage):
    tensors = {
        "counts": torch.tensor([[1, 2], [2**40, 4]]),
        "flags": torch.tensor([True, False]),
        "ids": torch.arange(40_000, dtype=torch.int32).view(200, 200),
        "bytes": torch.arange(40_000).to(torch.uint8).view(200, 200),
        "batches": torch.tensor(3),
    }
    decoded = decode(encode(tensors, storage), path="here")
    assert {name: tensor.dtype for name, tensor in decoded.items()} == {
        name: tensor.dtype for name, tensor in tensors.items()
    }
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_of_one_number_are_exact(storage):
    rows = torch.tensor([[0.0], [0.5], [-2.0]]).expand(3, 6000)
    assert torch.equal(through(rows, storage).float(), rows)
    same = torch.full((200, 100), 0.7)
    assert through(same, storage).float()[3, 3] == pytest.approx(0.7, rel=2**-8)
    assert through(same, storage).unique().numel() == 1


@pytest.mark.parametrize("storage", STORAGES)
def test_the_size_is_that_of_what_is_stored(storage):
    tensors = {
        "matrix": drawn(300, 200),
        "cube": drawn(30, 20, 50),
        "vector": drawn(30_000),
        "half": drawn(300, 200).bfloat16(),
        "scalar": torch.tensor(1.5),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 5),
    }
    expected = sum(tensor.nbytes for tensor in encode(tensors, storage).values())
    assert size(tensors, storage) == expected
    assert size({name: tensor.to("meta") for name, tensor in tensors.items()}, storage) == expected


def test_a_file_is_read_without_this_code(tmp_path):
    layer = nn.Linear(200, 300)
    tensors = layer.state_dict()
    for storage in EIGHT_BITS:
        path = tmp_path / f"{storage}.safetensors"
        write_tensors(path, encode(tensors, storage))
        found = load_file(path)
        if storage == "int8":
            codes = found["weight"].float()
            weight = codes * found["weight.scale"][:, None] + found["weight.offset"][:, None]
        else:
            weight = found["weight.codebook"][found["weight"].long()]
        torch.testing.assert_close(weight, read_tensors(path)["weight"])
        torch.testing.assert_close(weight, tensors["weight"], rtol=0, atol=2e-3)
        assert torch.equal(found["bias"], tensors["bias"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3.4e38])
@pytest.mark.parametrize("storage", STORAGES)
def test_numbers_that_only_float32_has_are_refused(storage, bad):
    tensor = drawn(300, 200)
    tensor[2, 3] = bad
    if storage == "float32":
        torch.testing.assert_close(through(tensor, storage), tensor, equal_nan=True)
        return
    with pytest.raises(RecipeError, match="tensor 'x' holds numbers that are not finite"):
        through(tensor, storage)


@pytest.mark.parametrize(
    ("storage", "damage"),
    [
        ("int8", {"x.scale": torch.ones(7)}),
        ("int8", {"x.offset": torch.ones(300, 1, 2)}),
        ("int8", {"x.offset": None}),
        ("codebook", {"x.codebook": torch.ones(255)}),
    ],
)
def test_codes_and_what_they_stand_for_that_do_not_fit_are_one_line(storage, damage, tmp_path):
    stored = encode({"x": drawn(300, 200)}, storage) | damage
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    write_tensors(tmp_path / "a.safetensors", stored)
    with pytest.raises(DataError, match=r"a\.safetensors: the codes of 'x' and what they stand for"):
        read_tensors(tmp_path / "a.safetensors")
