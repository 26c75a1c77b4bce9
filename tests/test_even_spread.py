import numpy as np
import pytest

from medcoss_components.errors import InputError
from medcoss_components.even_spread import evenly_spread


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (10, 3, [0, 4, 9]),
        (100, 4, [0, 33, 66, 99]),
        (4, 3, [0, 2, 3]),
        (2, 5, [0, 1]),
        (5, 1, [0]),
        (5, 0, []),
        (0, 4, []),
    ],
)
def test_positions(count, wanted, expected):
    places = evenly_spread(count, wanted)
    assert places.tolist() == expected and places.dtype == np.int64


def test_each_position_once():
    for count in range(2, 40):
        for wanted in range(2, count + 1):
            places = evenly_spread(count, wanted)
            steps = np.diff(places)
            assert (len(places), places[0], places[-1]) == (wanted, 0, count - 1)
            assert steps.min() >= 1 and steps.max() - steps.min() <= 1


@pytest.mark.parametrize(("count", "wanted", "name"), [(-1, 3, "count"), (3, -2, "wanted")])
def test_negative_numbers_are_refused(count, wanted, name):
    with pytest.raises(InputError, match=f"{name}: must be 0 or more"):
        evenly_spread(count, wanted)
