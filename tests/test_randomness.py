"""Generators depend on names and counters alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medcoss_components.randomness import derive_seed, generator_for, numpy_generator_for

KEYS = [
    (),
    ("mask",),
    ("mask", 0),
    ("mask", 1),
    ("mask", 0, 1),
    ("mask", 1, 0),
    ("mask", 11),
    ("mask", 1, 1),
    ("mix", 0),
]


def test_same_names_same_numbers():
    first, second = (torch.rand(4, generator=generator_for(3, "mask", 1, 2)) for _ in range(2))
    assert torch.equal(first, second)
    first, second = (numpy_generator_for(3, "mask", 1, 2).random(4) for _ in range(2))
    assert np.array_equal(first, second)


def test_other_seed_names_or_counters_other_numbers():
    seeds = [derive_seed(seed, *keys) for seed, keys in itertools.product((0, 1, 10), KEYS)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", [0, 1, 2**40, -5])
def test_seed_fits_torch(seed):
    assert 0 <= derive_seed(seed, "any") < 2**63
    assert generator_for(seed, "any").device.type == "cpu"


def test_known_value():
    """Written down once: another version of the project must go on with the same draws."""
    assert derive_seed(0, "mask", 1, 2) == 3051617541004963812
    assert numpy_generator_for(0, "mask").integers(1000, size=3).tolist() == [695, 993, 443]


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    torch.rand(5, generator=generator_for(0, "mask"))
    assert torch.equal(torch.rand(1), expected)
