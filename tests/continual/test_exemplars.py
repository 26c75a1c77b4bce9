"""Exemplar selection: exact quotas, ties, degenerate features, an oracle by loops."""

import numpy as np
import pytest

from medcoss_components.continual.exemplars import (
    cluster_count,
    exemplar_count,
    fill_quota,
    project_2d,
    select_exemplars,
)
from medcoss_components.errors import InputError


def random_features(rows=200, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def fill_by_loop(assignment, distances, count):
    """Oracle: go round the clusters and take the nearest one left of each, the nearest clusters first."""
    queues = {}
    for row in range(len(assignment)):
        queues.setdefault(assignment[row], []).append((distances[row], row))
    for queue in queues.values():
        queue.sort()
    chosen = []
    while len(chosen) < count:
        for _, row in sorted(queue.pop(0) for queue in queues.values() if queue):
            if len(chosen) < count:
                chosen.append(row)
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(8))
def test_quota_equals_the_loop(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 60))
    assignment = generator.integers(0, generator.integers(1, 9), size)
    distances = generator.integers(0, 5, size).astype(np.float32)  # few values: many ties
    for count in {1, size // 3 + 1, size}:
        assert fill_quota(assignment, distances, count).tolist() == fill_by_loop(assignment, distances, count)


def test_quota_by_hand():
    # clusters of 1, 4 and 5 samples; the first gives its only one, the others go on by turns, ties going by index
    assignment = np.array([0, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    distances = np.array([9, 4, 3, 2, 1, 1, 2, 3, 4, 5], dtype=np.float32)
    assert fill_quota(assignment, distances, 7).tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert fill_quota(assignment, distances, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert fill_quota(assignment, distances, 9).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_ties_go_by_index():
    assert fill_quota(np.zeros(5, dtype=int), np.ones(5), 2).tolist() == [0, 1]


def test_equal_clusters_give_equal_quotas():
    centres = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    features = np.repeat(centres, 10, axis=0) + np.random.default_rng(0).normal(size=(40, 2))
    chosen = select_exemplars(features, count=12, clusters=4, seed=0)
    assert np.bincount(chosen.indices // 10, minlength=4).tolist() == [3, 3, 3, 3]
    for group in range(4):
        rows = np.arange(10 * group, 10 * group + 10)
        distances = np.linalg.norm(features[rows] - features[rows].mean(0), axis=1)
        assert set(rows[np.argsort(distances)[:3]]) == set(chosen.indices[chosen.indices // 10 == group])


def test_result_is_consistent():
    features = random_features()
    chosen = select_exemplars(features, count=20, clusters=4, seed=0)
    assert len(chosen) == 20 and chosen.indices.dtype == np.int64 and chosen.distances.dtype == np.float32
    assert (np.diff(chosen.indices) > 0).all()
    np.testing.assert_array_equal(chosen.clusters, chosen.assignment[chosen.indices])
    assert np.bincount(chosen.clusters).tolist() == [5, 5, 5, 5]
    for number in range(4):
        members = np.flatnonzero(chosen.assignment == number)
        distances = np.linalg.norm(features[members] - features[members].mean(0), axis=1)
        nearest = members[np.argsort(distances)[:5]]
        assert set(nearest) == set(chosen.indices[chosen.clusters == number])
        np.testing.assert_allclose(
            np.sort(chosen.distances[chosen.clusters == number]), np.sort(distances)[:5], atol=1e-2
        )


def test_deterministic_for_a_seed_and_independent_of_dtype():
    features = random_features()
    first = select_exemplars(features, count=17, clusters=3, seed=5)
    again = select_exemplars(features.astype(np.float64), count=17, clusters=3, seed=5)
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.distances, again.distances)
    others = [select_exemplars(features, count=17, clusters=3, seed=seed).indices.tolist() for seed in range(6, 12)]
    assert any(other != first.indices.tolist() for other in others)


@pytest.mark.parametrize("count, clusters", [(1, 1), (1, 50), (3, 8), (7, 3), (13, 13), (50, 1), (50, 7), (50, 50)])
@pytest.mark.parametrize("kind", ["random", "constant", "duplicates", "three_values", "line"])
def test_total_is_always_exact(kind, count, clusters):
    features = {
        "random": random_features(50),
        "constant": np.full((50, 6), 3.7, dtype=np.float32),
        "duplicates": np.repeat(random_features(25), 2, axis=0),
        "three_values": random_features(3)[np.arange(50) % 3],
        "line": np.arange(50, dtype=np.float32)[:, None],
    }[kind]
    chosen = select_exemplars(features, count=count, clusters=clusters, seed=1)
    assert len(chosen) == len(set(chosen.indices.tolist())) == count
    assert chosen.clusters.max() < min(clusters, count)
    assert np.isfinite(chosen.distances).all()


def test_constant_features_choose_the_first_samples():
    chosen = select_exemplars(np.ones((9, 4)), count=3, clusters=3, seed=0)
    assert chosen.indices.tolist() == [0, 1, 2] and chosen.clusters.tolist() == [0, 0, 0]
    assert chosen.distances.tolist() == [0, 0, 0]


def test_a_single_sample():
    chosen = select_exemplars(np.ones((1, 2)), count=1, clusters=1, seed=0)
    assert (chosen.indices.tolist(), chosen.distances.tolist()) == ([0], [0.0])


def test_few_distinct_values_are_all_kept():
    features = np.zeros((100, 2), dtype=np.float32)
    features[40], features[70] = 5.0, -5.0
    assert {40, 70} <= set(select_exemplars(features, count=3, clusters=3, seed=0).indices.tolist())


@pytest.mark.parametrize(
    "total, ratio, expected", [(1000, 0.05, 50), (30, 0.05, 2), (10, 0.01, 1), (1, 0.01, 1), (7, 1, 7)]
)
def test_counts(total, ratio, expected):
    assert exemplar_count(total, ratio) == cluster_count(total, ratio) == expected


def test_wrong_arguments_are_named():
    features = random_features(5)
    with pytest.raises(InputError, match="count: .* 5 samples, received 6"):
        select_exemplars(features, count=6, clusters=1, seed=0)
    with pytest.raises(InputError, match="received 0"):
        select_exemplars(features, count=0, clusters=1, seed=0)
    with pytest.raises(InputError, match="clusters: .* received 0"):
        select_exemplars(features, count=1, clusters=0, seed=0)
    with pytest.raises(InputError, match=r"received \(5,\)"):
        select_exemplars(features[:, 0], count=1, clusters=1, seed=0)
    features[[1, 3], 2] = np.nan
    with pytest.raises(InputError, match="2 of 5 rows"):
        select_exemplars(features, count=1, clusters=1, seed=0)
    with pytest.raises(InputError, match="ratio: .* received 1.5"):
        exemplar_count(10, 1.5)
    with pytest.raises(InputError, match="cluster_ratio: .* received 0"):
        cluster_count(10, 0)
    with pytest.raises(InputError, match="at least 1 sample, received 0"):
        exemplar_count(0, 0.5)


def test_projection_keeps_the_two_main_directions():
    plane = np.random.default_rng(0).normal(size=(80, 2)) * [9, 3]
    plane -= plane.mean(0)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))
    points = project_2d(plane @ rotation[:2] + 4)
    assert points.shape == (80, 2) and points.dtype == np.float32
    expected = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=-1), expected, atol=1e-3)
    assert points[:, 0].var() > points[:, 1].var()


def test_projection_of_flat_features():
    assert project_2d(np.ones((4, 3))).tolist() == [[0, 0]] * 4
    np.testing.assert_allclose(project_2d(np.array([[1.0], [3.0]])), [[-1, 0], [1, 0]])


class TestRandomRule:
    def test_exact_number_without_repeats_and_repeatable(self):
        features = random_features()
        first, again = (select_exemplars(features, count=17, clusters=3, seed=5, rule="random") for _ in range(2))
        assert len(set(first.indices.tolist())) == 17 and (np.diff(first.indices) > 0).all()
        np.testing.assert_array_equal(first.indices, again.indices)
        assert first.indices.tolist() != select_exemplars(features, count=17, clusters=3, seed=5).indices.tolist()

    def test_does_not_look_at_the_features(self):
        first, other = (
            select_exemplars(features, count=5, clusters=2, seed=0, rule="random")
            for features in (random_features(40), np.ones((40, 3)))
        )
        assert first.indices.tolist() == other.indices.tolist()

    def test_every_sample_is_drawn_as_often(self):
        """400 draws of 5 of 10: each sample about 200 times, standard deviation 10."""
        counts = np.zeros(10)
        for seed in range(400):
            counts[select_exemplars(np.ones((10, 1)), count=5, clusters=1, seed=seed, rule="random").indices] += 1
        assert counts.min() > 150 and counts.max() < 250

    def test_one_cluster_around_the_mean(self):
        chosen = select_exemplars(np.array([[0.0], [2.0], [4.0]]), count=3, clusters=2, seed=0, rule="random")
        assert chosen.distances.tolist() == [2, 0, 2] and chosen.clusters.tolist() == [0, 0, 0]
        assert chosen.assignment.tolist() == [0, 0, 0] and chosen.distances.dtype == np.float32

    def test_other_rule_refused(self):
        with pytest.raises(InputError, match="rule: must be one of kmeans, random, received 'first'"):
            select_exemplars(np.ones((3, 1)), count=1, clusters=1, seed=0, rule="first")
