"""Measures of matrices that can be reckoned in the head."""

from __future__ import annotations

import pytest

from medcoss_components.errors import InputError
from medcoss_components.retention.measures import average_accuracy, backward_transfer, forgetting, measures

NAN = float("nan")
SQUARE = [[0.8, 0.2, 0.1], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]


def test_square_matrix():
    assert average_accuracy(SQUARE) == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert backward_transfer(SQUARE) == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
    assert forgetting(SQUARE) == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)


def test_what_was_before_the_own_stage_has_no_influence():
    other = [[0.8, NAN, NAN], [0.9, 0.7, 1.0], [0.6, 0.5, 0.9]]
    assert measures(other) == measures(SQUARE)


def test_start_row_and_two_probes_of_one_modality():
    """Row 0 is the encoder before the chain; the last probe's modality is not learned."""
    scores = [[0.5, 0.9, 0.9, 1.0], [0.8, 0.6, 0.2, 1.0], [0.7, 0.4, 0.6, 1.0]]
    own = [1, 1, 2, None]
    assert average_accuracy(scores, own) == pytest.approx((0.7 + 0.4 + 0.6) / 3)
    assert backward_transfer(scores, own) == pytest.approx((-0.1 - 0.2) / 2)
    assert forgetting(scores, own) == pytest.approx((0.1 + 0.2) / 2)


def test_learned_before_the_chain():
    assert backward_transfer([[0.8], [0.7], [0.9]], [0]) == pytest.approx(0.1)
    assert forgetting([[0.8], [0.7], [0.9]], [0]) == pytest.approx(-0.1)


def test_nothing_to_compare():
    assert measures([[0.7]]) == {"average_accuracy": 0.7, "backward_transfer": None, "forgetting": None}
    assert measures([[0.7]], [None]) == dict.fromkeys(("average_accuracy", "backward_transfer", "forgetting"))
    assert measures([[NAN], [NAN]], [0]) == dict.fromkeys(("average_accuracy", "backward_transfer", "forgetting"))


@pytest.mark.parametrize(
    ("scores", "own", "match"),
    [
        ([0.1, 0.2], None, r"matrix \(stages, probes\), received shape \(2,\)"),
        ([[]], None, "received shape"),
        ([[0.1, 0.2]], None, r"own: is needed .* \(1, 2\)"),
        ([[0.1, 0.2]], [0], "2 probes need as many rows, received 1"),
        ([[0.1, 0.2]], [0, 1], "rows must lie in 0 .. 0 or be None, received 1"),
        ([[0.1]], [-1], "received -1"),
    ],
)
def test_refusals(scores, own, match):
    with pytest.raises(InputError, match=match):
        measures(scores, own)
