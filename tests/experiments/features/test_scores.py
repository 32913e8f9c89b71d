"""Laws of the scores: definitions as double loops, bounds, and every promised error."""

import itertools

import numpy as np
import pytest

from experiments.features import distances
from experiments.features.frechet import moments
from experiments.features.scores import (
    inception_score,
    kernel_distance,
    nearest_neighbour_ratio,
    precision_recall,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 3), (3, 0)])
def test_what_is_no_set_of_rows_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features must be \[N, D\]"):
        moments(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"logits must be \[N, D\]"):
        inception_score(np.zeros(shape, np.float32), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    good = normal(4, 12, 3).astype(np.float32)
    bad = good.copy()
    bad[5, 1] = value
    calls = {
        "features": lambda: moments(bad),
        "logits": lambda: inception_score(bad, 2),
        "y": lambda: kernel_distance(good, bad),
        "fake": lambda: precision_recall(good, bad),
        "held_out": lambda: nearest_neighbour_ratio(good, good, bad),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name} must be finite, but 1 values"):
            call()


# The inception score


def test_constant_predictions_score_one() -> None:
    logits = np.tile(normal(22, 1, 7), (20, 1)).astype(np.float32)
    score = inception_score(logits, 4)
    assert score.mean == pytest.approx(1.0, abs=1e-12)
    assert score.std == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("certainty", [100.0, 1e4, 1e30])
def test_certain_and_balanced_predictions_score_the_number_of_classes(certainty: float) -> None:
    logits = certainty * np.tile(np.eye(6, dtype=np.float32), (10, 1))
    assert inception_score(logits, 5) == pytest.approx((6.0, 0.0), abs=1e-9)


def test_it_is_the_definition_on_contiguous_parts_of_any_remainder() -> None:
    logits = (3 * normal(23, 11, 4)).astype(np.float32)
    for splits, bounds in ((1, [0, 11]), (3, [0, 3, 7, 11]), (4, [0, 2, 5, 8, 11])):
        scores = []
        for first, stop in itertools.pairwise(bounds):
            p = np.exp(logits[first:stop].astype(np.float64))
            p /= p.sum(axis=1, keepdims=True)
            total = 0.0
            for row in p:
                total += sum(q * np.log(q / m) for q, m in zip(row, p.mean(axis=0), strict=True))
            scores.append(np.exp(total / len(p)))
        actual = inception_score(logits, splits)
        assert actual == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12, abs=1e-12)
        assert 1.0 < actual.mean < 4.0


def test_rows_in_an_order_by_class_lower_the_score() -> None:
    logits = 100.0 * np.eye(5, dtype=np.float32).repeat(4, axis=0)
    assert inception_score(logits, 1).mean == pytest.approx(5.0)
    assert inception_score(logits, 5).mean == pytest.approx(1.0)


@pytest.mark.parametrize("splits", [0, 12])
def test_a_part_has_to_have_a_row(splits: int) -> None:
    with pytest.raises(ValueError, match=f"splits = {splits} must be 1 to the number of rows, 11"):
        inception_score(np.zeros((11, 4), np.float32), splits)


# KID


def loop_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, one pair at a time."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1.0) ** 3

    def inside(z: np.ndarray) -> float:
        return float(np.mean([kernel(a, b) for a, b in itertools.permutations(z, 2)]))

    cross = np.mean([kernel(a, b) for a in x for b in y])
    return float(inside(x) + inside(y) - 2.0 * cross)


def test_the_kernel_distance_is_a_double_loop() -> None:
    x, y = normal(24, 9, 4).astype(np.float32), 1 + normal(25, 9, 4).astype(np.float32)
    actual = kernel_distance(x, y, subsets=3)
    exact = loop_mmd(x.astype(np.float64), y.astype(np.float64))
    assert actual.mean == pytest.approx(exact, rel=1e-12)
    # All nine rows are in every subset, once.
    assert actual.std == pytest.approx(0.0, abs=1e-12) and actual.subset_size == 9


def test_the_kernel_distance_is_unbiased() -> None:
    draws = [normal(100 + i, 2, 12, 3).astype(np.float32) for i in range(400)]
    values = np.array([kernel_distance(x, y, subsets=1).mean for x, y in draws])
    error = values.std(ddof=1) / np.sqrt(values.size)
    assert abs(values.mean()) < 3 * error and (values < 0).mean() > 0.3
    # The bias of the estimate that keeps the diagonal would be seen at once.
    assert np.mean([biased_excess(x, y) for x, y in draws]) > 10 * error


def biased_excess(x: np.ndarray, y: np.ndarray) -> float:
    """What keeping k(x, x) adds to the estimate, about: E[k(x, x) - k(x, x')] (1/n + 1/m)."""
    gram = (x @ y.T / x.shape[1] + 1) ** 3
    own = ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3
    return float((own.mean() - gram.mean()) * (1 / len(x) + 1 / len(y)))


def test_subsets_estimate_what_the_sets_do() -> None:
    x, y = normal(26, 200, 3).astype(np.float32), 0.5 + normal(27, 150, 3).astype(np.float32)
    whole = kernel_distance(x[:150], y, subsets=1).mean
    parts = kernel_distance(x[:150], y, subsets=200, subset_size=30)
    assert parts.subset_size == 30 and parts.std > 0
    assert abs(parts.mean - whole) < 4 * parts.std / np.sqrt(200)
    assert kernel_distance(x, y, 1).subset_size == 150
    again = kernel_distance(x[:150], y, subsets=200, subset_size=30)
    assert again == parts
    assert kernel_distance(x[:150], y, 200, 30, seed=1).mean != parts.mean


def test_the_kernel_distance_refuses_what_it_cannot_estimate() -> None:
    x = normal(28, 5, 3)
    with pytest.raises(ValueError, match="same number of features, not x 3, y 2"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="rows of y = 1 must be at least 2"):
        kernel_distance(x, x[:1])
    with pytest.raises(ValueError, match="subset_size = 1 must be at least 2"):
        kernel_distance(x, x, subset_size=1)
    with pytest.raises(ValueError, match="subsets = 0 must be at least 1"):
        kernel_distance(x, x, subsets=0)


# Precision and recall


def loop_share(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    """The share of points inside a ball of the manifold, one pair at a time."""
    inside = 0
    for point in points:
        for i, centre in enumerate(manifold):
            others = [np.linalg.norm(centre - o) for j, o in enumerate(manifold) if j != i]
            if np.linalg.norm(point - centre) <= sorted(others)[k - 1]:
                inside += 1
                break
    return inside / len(points)


def lattice(seed: int, rows: int) -> np.ndarray:
    """Points with many equal distances and many doubles."""
    return np.random.default_rng(seed).integers(0, 4, (rows, 2)) + 100.0


SETS = {
    "overlapping": (normal(29, 31, 3), 0.8 * normal(30, 23, 3) + 0.7),
    "far from the origin": (1e4 + 1e-2 * normal(31, 31, 3), 1e4 + 1e-2 * normal(32, 23, 3)),
    "lattice": (lattice(33, 31), lattice(34, 23) + 1),
    "an outlier": (np.r_[normal(35, 30, 2), [[1e6, 0]]], normal(36, 23, 2)),
}


@pytest.mark.parametrize("block", [1, 7, 23, 2048])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("name", SETS)
def test_precision_and_recall_are_double_loops(name: str, k: int, block: int) -> None:
    real, fake = (x.astype(np.float32) for x in SETS[name])
    wide = real.astype(np.float64), fake.astype(np.float64)
    expected = loop_share(wide[1], wide[0], k), loop_share(*wide, k)
    actual = precision_recall(real, fake, k, block)
    assert actual == (actual.precision, actual.recall) == expected
    if name == "overlapping":
        assert 0 < actual.precision < 1 and 0 < actual.recall < 1


def test_equal_sets_have_all_and_disjoint_sets_nothing() -> None:
    x = normal(37, 40, 5).astype(np.float32)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x[::-1], k=1, block=6) == (1.0, 1.0)
    assert precision_recall(x, x + np.float32(100)) == (0.0, 0.0)


def test_equal_rows_are_at_zero_whatever_their_size() -> None:
    """Every ball has radius zero here, so any rounding would leave the copies outside."""
    x = (1e3 * normal(38, 10, 64)).astype(np.float32).repeat(4, axis=0)
    assert precision_recall(x, x[::-1], k=3, block=7) == (1.0, 1.0)


def test_precision_is_of_the_samples_and_recall_of_the_data() -> None:
    """Samples of one mode of two are all good, and half of the data is missing."""
    modes = normal(39, 30, 4), 50.0 + normal(40, 30, 4)
    fake = modes[0][::-1].copy()
    assert precision_recall(np.concatenate(modes), fake) == (1.0, 0.5)
    assert precision_recall(fake, np.concatenate(modes)) == (0.5, 1.0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_squared_distances_keep_their_digits(offset: float) -> None:
    x, y = offset + 1e-2 * normal(41, 2, 12, 5)
    y[3], y[4] = x[2], x[5] + 1e-7
    expected = np.square(x[:, None] - y).sum(axis=2)
    actual = distances.squared(x, y)
    np.testing.assert_allclose(actual, expected, rtol=1e-8)
    assert actual[2, 3] == 0.0


def test_precision_and_recall_refuse_sets_without_neighbours() -> None:
    x = normal(42, 5, 3)
    with pytest.raises(ValueError, match="With k = 4, number of rows of fake = 4 must be at least"):
        precision_recall(x, x[:4], k=4)
    with pytest.raises(ValueError, match="k = 0 must be at least 1"):
        precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="block = 0 must be at least 1"):
        precision_recall(x, x, block=0)
    with pytest.raises(ValueError, match="same number of features, not real 3, fake 2"):
        precision_recall(x, x[:, :2])


# Copies of the training set


def test_copies_are_at_zero_and_new_data_near_one() -> None:
    train, held_out, fresh = np.split(normal(43, 900, 6).astype(np.float32), 3)
    assert nearest_neighbour_ratio(train[::-1], train, held_out) == 0.0
    assert nearest_neighbour_ratio(held_out, train, held_out) == 1.0
    assert nearest_neighbour_ratio(fresh, train, held_out) == pytest.approx(1.0, abs=0.1)
    near = train + np.float32(1e-3) * normal(44, 300, 6).astype(np.float32)
    assert 0.0 < nearest_neighbour_ratio(near, train, held_out) < 0.01


@pytest.mark.parametrize("block", [1, 5, 2048])
def test_the_ratio_is_a_double_loop(block: int) -> None:
    fake, train, held_out = normal(45, 12, 3), normal(46, 17, 3), 2 * normal(47, 8, 3)

    def median(rows: np.ndarray) -> float:
        return float(np.median([min(np.linalg.norm(a - b) for b in train) for a in rows]))

    actual = nearest_neighbour_ratio(fake, train, held_out, block)
    assert actual == pytest.approx(median(fake) / median(held_out), rel=1e-8)


def test_the_ratio_needs_a_unit() -> None:
    x = normal(48, 6, 3)
    with pytest.raises(ValueError, match="More than half of held_out is in train"):
        nearest_neighbour_ratio(1 + x, x, x[:4])
    with pytest.raises(ValueError, match="same number of features, not fake 3, train 3, held_out"):
        nearest_neighbour_ratio(x, x, x[:, :2])
    with pytest.raises(ValueError, match="block = 0 must be at least 1"):
        nearest_neighbour_ratio(x, x, 1 + x, block=0)
