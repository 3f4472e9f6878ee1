"""Names that do not match come with the mapping that was meant."""

import itertools

import numpy as np
import pytest

from parity.port.names import inverse, mismatch, pair, transposition, words

TORCH = {"conv1.weight": (8, 3, 5, 5), "conv1.bias": (8,), "norm.weight": (8,), "norm.bias": (8,), "fc.weight": (10, 8)}


def test_equal_names_and_shapes_are_no_mismatch() -> None:
    assert mismatch(TORCH, dict(reversed(TORCH.items()))) is None


def test_left_over_names_are_paired_by_shape_likeness_and_order() -> None:
    came = {"Conv_0/kernel": (5, 5, 3, 8), "Conv_0/bias": (8,), "Norm_0/scale": (8,), "Norm_0/bias": (8,)}
    came["Dense_0/kernel"] = (8, 10)
    wrong = mismatch(TORCH, came)
    assert wrong is not None
    line, hint = wrong
    assert line == (
        "names do not match: 5 of 5 names missing (conv1.weight, conv1.bias, norm.weight, …), "
        "5 unknown to the reference (Conv_0/kernel, Conv_0/bias, Norm_0/scale, …)"
    )
    assert hint == "\n".join(
        [
            "paste and correct this mapping, the reference's names to the port's:",
            "",
            "names = {",
            '    "conv1.weight": "Conv_0/kernel",  # (8, 3, 5, 5) → (5, 5, 3, 8), axes (2, 3, 1, 0)',
            '    "conv1.bias": "Conv_0/bias",  # (8,); 2 more would fit',
            '    "norm.weight": "Norm_0/scale",  # (8,); 2 more would fit',
            '    "norm.bias": "Norm_0/bias",  # (8,); 2 more would fit',
            '    "fc.weight": "Dense_0/kernel",  # (10, 8) → (8, 10), axes (1, 0)',
            "}",
        ]
    )


def test_what_fits_nothing_is_listed() -> None:
    wrong = mismatch({"a": (3,), "b": (4,)}, {"a": (3,), "c": (5,)})
    assert wrong == (
        "names do not match: 1 of 2 names missing (b), 1 unknown to the reference (c)",
        "nothing of the port fits: b (4,)\nnothing of the reference fits: c (5,)",
    )


def test_a_transposed_tensor_is_said_to_be_one() -> None:
    wrong = mismatch(TORCH, {**TORCH, "conv1.weight": (5, 5, 3, 8)})
    assert wrong is not None
    assert wrong[0] == (
        "conv1.weight has shape (5, 5, 3, 8), expected (8, 3, 5, 5); "
        "it is the reference's transposed: to torch's layout with .transpose(3, 2, 0, 1)"
    )
    assert mismatch({"a": (2,)}, {"a": (3,)}) == ("a has shape (3,), expected (2,)", "")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 2, 3), (5, 4, 3, 2)])
def test_a_transposition_leads_to_the_shape_and_its_inverse_back(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    for axes in itertools.permutations(range(len(shape))):
        found = transposition(shape, array.transpose(axes).shape)
        assert found is not None
        assert array.transpose(found).shape == array.transpose(axes).shape
        assert np.array_equal(array.transpose(found).transpose(inverse(found)), array)


def test_each_name_is_used_once_and_numbers_are_in_order_of_size() -> None:
    torch = {f"layers.{at}.weight": (4, 4) for at in range(12)}
    pairs = pair(torch, {f"Dense_{at}/kernel": (4, 4) for at in range(12)})
    assert [(one.expected, one.came) for one in pairs] == [
        (f"layers.{at}.weight", f"Dense_{at}/kernel") for at in range(12)
    ]


def test_names_that_are_nothing_alike_are_paired_in_order_of_size_of_their_numbers() -> None:
    torch = {f"{letter}.weight": (4, 4) for letter in "qwertyuiopas"}
    came = dict.fromkeys(sorted(f"Dense_{at}/kernel" for at in range(12)), (4, 4))
    assert [one.came for one in pair(torch, came)] == [f"Dense_{at}/kernel" for at in range(12)]


def test_two_spellings_of_a_name_are_the_same_words() -> None:
    assert words("layers_0/norm1/scale") == words("layers.0.norm1.weight")
    assert words("bn/mean") == words("bn.running_mean")
    assert words("embed/embedding") == words("embed.weight")
    assert words("fc/kernel") != words("fc.bias")
