"""k-means against an explicit loop and against scikit-learn."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from medcoss_components.continual import kmeans


def blobs(rows=60, width=5, centres=4, seed=0):
    generator = np.random.default_rng(seed)
    places = generator.normal(size=(centres, width)) * 20
    return (places[np.arange(rows) % centres] + generator.normal(size=(rows, width))).astype(np.float32)


def lloyd_by_loop(points, centres, rounds=50):
    """Oracle: plain Lloyd in float64."""
    points, centres = points.astype(np.float64), centres.astype(np.float64).copy()
    assignment = [0] * len(points)
    for _ in range(rounds):
        for row, point in enumerate(points):
            assignment[row] = min(range(len(centres)), key=lambda c: float(((point - centres[c]) ** 2).sum()))
        for number in range(len(centres)):
            members = [points[row] for row in range(len(points)) if assignment[row] == number]
            if members:
                centres[number] = sum(members) / len(members)
    return np.array(assignment), centres


def run(points, clusters, seed=0):
    return kmeans.cluster(points, clusters=clusters, generator=np.random.default_rng(seed))


def test_equals_the_loop_from_the_same_start(monkeypatch):
    points = blobs(rows=70, centres=6, seed=3)
    start = points[:5] - points.mean(0)
    monkeypatch.setattr(kmeans, "initial_centres", lambda *_, **__: start.copy())
    monkeypatch.setattr(kmeans, "TOLERANCE", 0.0)
    monkeypatch.setattr(kmeans, "BLOCK_ROWS", 16)
    assignment, centres = run(points, 5)
    expected, expected_centres = lloyd_by_loop(points, points[:5])
    np.testing.assert_array_equal(assignment, expected)
    np.testing.assert_allclose(centres, expected_centres, rtol=1e-4, atol=1e-4)


def test_each_row_belongs_to_its_nearest_centre_also_where_the_rounds_end_early(monkeypatch):
    monkeypatch.setattr(kmeans, "MAXIMUM_ROUNDS", 1)
    points = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    assignment, centres = run(points, 7)
    distances = np.square(points[:, None] - centres).sum(axis=2)
    assert (assignment == distances.argmin(axis=1)).all()


def test_finds_separate_groups():
    assignment, centres = run(blobs(), 4)
    groups = [set(assignment[start::4].tolist()) for start in range(4)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 4
    np.testing.assert_allclose(centres[assignment[0]], blobs()[::4].mean(0), rtol=1e-4, atol=1e-4)


def test_inertia_is_as_good_as_that_of_scikit_learn():
    from sklearn.cluster import KMeans

    points = np.random.default_rng(1).normal(size=(3000, 12)).astype(np.float32)
    assignment, centres = run(points, 40)
    inertia = kmeans.squared_distances(points, centres[assignment]).sum()
    reference = KMeans(40, n_init=1, random_state=0).fit(points).inertia_
    assert inertia == pytest.approx(reference, rel=0.02)


@pytest.mark.parametrize("rows", [150, 2500])  # all rows are candidates, or some are drawn in rounds
def test_the_start_finds_every_group(rows):
    points = blobs(rows=rows, centres=30, seed=2)
    with ThreadPoolExecutor(2) as pool:
        start = kmeans.initial_centres(points, clusters=30, generator=np.random.default_rng(0), pool=pool)
    nearest = ((points[:30, None] - start[None]) ** 2).sum(-1).argmin(1)
    assert len(set(nearest.tolist())) >= 29  # greedy k-means++ may miss one of thirty, hardly two


def test_candidates_count_the_points_that_are_nearest(monkeypatch):
    monkeypatch.setattr(kmeans, "BLOCK_ROWS", 100)
    points = blobs(rows=900, centres=6, seed=4)
    with ThreadPoolExecutor(2) as pool:
        rows, weights = kmeans._candidates(points, 6, np.random.default_rng(0), pool)
    owner = ((points[:, None].astype(np.float64) - points[rows][None]) ** 2).sum(-1).argmin(1)
    assert len(set(rows.tolist())) == len(rows) and 6 <= len(rows) < 200
    np.testing.assert_array_equal(weights, np.bincount(owner, minlength=len(rows)))


def test_weighted_start_never_takes_points_without_weight():
    points, weights = np.arange(8.0, dtype=np.float32)[:, None], np.array([0, 1, 0, 1, 0, 1, 0, 1.0])
    chosen = kmeans.plus_plus(points, weights, clusters=4, generator=np.random.default_rng(0))
    assert sorted(chosen.tolist()) == [1, 3, 5, 7]


def test_equal_points_are_chosen_once_each():
    chosen = kmeans.plus_plus(np.ones((5, 2), np.float32), np.ones(5), clusters=5, generator=np.random.default_rng(0))
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]


def test_few_distinct_rows_among_many():
    points = np.repeat(np.eye(4, dtype=np.float32), 1000, axis=0)
    assignment, _ = run(points, 4)
    assert len(set(assignment.tolist())) == 4 and all(
        len(set(assignment[i : i + 1000])) == 1 for i in range(0, 4000, 1000)
    )


def test_same_bits_whatever_the_number_of_threads():
    points = np.random.default_rng(1).normal(size=(13_000, 8)).astype(np.float32)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(points, 7))
    finally:
        torch.set_num_threads(before)
    for assignment, centres in results[1:]:
        np.testing.assert_array_equal(assignment, results[0][0])
        np.testing.assert_array_equal(centres, results[0][1])


def flat(rows=2600, width=160, centres=30, seed=5, noise=0.01):
    """Groups that lie in 20 of ``width`` directions, with little noise in all of them."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(width, 20)))[0].T
    places = generator.normal(size=(centres, 20))[np.arange(rows) % centres]
    points = (places + 0.1 * generator.normal(size=places.shape)) @ directions
    return (points + noise * generator.normal(size=points.shape)).astype(np.float32)


def test_main_directions_hold_what_the_eigenvectors_hold():
    points = flat(noise=0.1)
    points -= points.mean(0)
    directions, held = kmeans.main_directions(points, np.random.default_rng(0))
    np.testing.assert_allclose(directions.T @ directions, np.eye(64), atol=1e-5)
    variances = np.linalg.eigvalsh(points.T.astype(np.float64) @ points)[::-1]
    best = variances[:64].sum() / variances.sum()
    assert 0.99 * best < held <= best + 1e-6


@pytest.mark.parametrize("looks", [True, False])
def test_groups_are_found_with_and_without_main_directions(looks, monkeypatch):
    from sklearn.cluster import KMeans

    asked, rounds = [], kmeans.main_directions
    monkeypatch.setattr(kmeans, "main_directions", lambda *given: asked.append(1) or rounds(*given))
    monkeypatch.setattr(kmeans, "ENOUGH_VARIANCE", 0.9 if looks else 1.1)
    seen = []
    monkeypatch.setattr(
        kmeans,
        "_seen_in_main_directions",
        lambda *a, f=kmeans._seen_in_main_directions, **k: seen.append(1) or f(*a, **k),
    )
    points = flat()
    assignment, centres = run(points, 30)
    inertia = kmeans.squared_distances(points, centres[assignment]).sum()
    assert (len(asked), len(seen)) == (1, int(looks))
    assert inertia < 1.1 * KMeans(30, n_init=3, random_state=0).fit(points).inertia_
    nearest = ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    assert (nearest == assignment).mean() > 0.999  # but for rounding


def test_narrow_or_few_features_are_taken_whole(monkeypatch):
    monkeypatch.setattr(kmeans, "main_directions", None)  # a call would fail
    run(flat(width=127), 5)
    run(flat(rows=2000), 5)


def test_same_bits_whatever_the_number_of_threads_in_main_directions():
    points, results, before = flat(rows=9000), [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(points, 20))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_rows_that_differ_outside_the_main_directions_alone():
    """Two of three rows are equal in the main directions: more clusters are asked for than can be told apart there."""
    points = np.zeros((3000, 200), dtype=np.float32)
    points[:, :64] = np.random.default_rng(0).integers(0, 2, (3000, 1)) * 10.0
    points[::3, 100] = 0.01
    assignment, centres = run(points, 4)
    assert np.isfinite(centres).all() and len(set(assignment.tolist())) >= 2
    inertia = kmeans.squared_distances(points, centres[assignment]).sum()
    assert inertia <= 1000 * 0.01**2


def test_an_empty_cluster_keeps_its_centre(monkeypatch):
    points = np.array([[0.0], [1.0], [10.0], [11.0]], dtype=np.float32)
    far = np.array([[-5.0], [5.0], [500.0]], dtype=np.float32)
    monkeypatch.setattr(kmeans, "initial_centres", lambda *_, **__: far)
    assignment, centres = run(points, 3)
    assert assignment.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(centres[:, 0], [0.5, 10.5, 505.5])


def test_a_large_offset_does_not_drown_the_differences():
    points = blobs().astype(np.float64)
    assignment, _ = run(points.astype(np.float32), 4)
    shifted, _ = run((points + 5000.0).astype(np.float32), 4)
    np.testing.assert_array_equal(assignment, shifted)


def test_distinct_rows_are_counted_up_to_the_limit():
    points = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 1.0], [2.0, 1.0], [3.0, 1.0]], dtype=np.float32)
    assert kmeans.count_distinct_rows(points, limit=10) == 3
    assert kmeans.count_distinct_rows(points, limit=2) == 2


def test_equal_rows_have_equal_distances(monkeypatch):
    monkeypatch.setattr(kmeans, "BLOCK_ROWS", 3)
    points = np.repeat(blobs(rows=1), 8, axis=0)
    distances = kmeans.squared_distances(points, np.zeros_like(points))
    assert len(set(distances.tolist())) == 1
    assert distances[0] == pytest.approx(float((points[0].astype(np.float64) ** 2).sum()))
