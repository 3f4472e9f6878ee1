"""torch's draw without torch: equal bit for bit."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist.experiment import Experiment
from fmnist_jax import torch_rng
from fmnist_torch import model

WIDTHS = [(4,), (16,), (16, 16), (33,), (7, 5, 3)]
SEEDS = [0, 1, 2**31, 2**40 + 5, 2**64 - 1]


def assert_equal_draws(experiment: Experiment) -> None:
    drawn = torch_rng.init(experiment)
    reference = {name: tensor.numpy() for name, tensor in model.init(experiment).state_dict().items()}
    assert list(drawn) == list(reference)
    for name, tensor in reference.items():
        assert drawn[name].dtype == np.float32
        assert np.array_equal(drawn[name], tensor), name


@given(
    seed=st.integers(0, 2**64 - 1) | st.sampled_from(SEEDS),
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple) | st.sampled_from(WIDTHS),
)
@settings(max_examples=60, deadline=None)
def test_the_draw_is_torch_s(seed: int, hidden: tuple[int, ...]) -> None:
    assert_equal_draws(Experiment(hidden=hidden, seed=seed))


@pytest.mark.parametrize("capability", ["default", "avx2", "nonsense"])
def test_the_draw_is_torch_s_with_other_instructions(capability: str) -> None:
    cases = [(hidden, seed) for hidden in WIDTHS for seed in SEEDS]
    script = (
        "import json, sys; from tests.programs.test_torch_rng import assert_equal_draws, Experiment\n"
        "for hidden, seed in json.loads(sys.argv[1]): assert_equal_draws(Experiment(hidden=tuple(hidden), seed=seed))"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", script, json.dumps(cases)], env=environment, check=True)


def test_seeds_differ_in_their_low_32_bits_only() -> None:
    one, other, same = (torch_rng.init(Experiment(seed=seed)) for seed in (5, 6, 2**40 + 5))
    assert np.array_equal(one["fc1.weight"], same["fc1.weight"])
    assert not np.array_equal(one["fc1.weight"], other["fc1.weight"])


def test_no_two_words_of_a_draw_are_shared() -> None:
    drawn = torch_rng.init(Experiment(hidden=(64,)))
    assert len(np.unique(drawn["fc1.weight"])) > 0.99 * drawn["fc1.weight"].size
    assert abs(drawn["fc1.weight"]).max() <= 1 / 28
