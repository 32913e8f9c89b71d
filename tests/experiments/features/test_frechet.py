"""Laws of moments and of the Fréchet distance: closed forms, invariances, refusals."""

import numpy as np
import pytest
from scipy import linalg

from experiments.features.frechet import Moments, frechet_distance, moments


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def spd(seed: int, size: int) -> np.ndarray:
    root = normal(seed, size, size)
    return root @ root.T / size + 0.1 * np.eye(size)


def rotation(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(normal(seed, size, size))[0]


def fid(a: np.ndarray, b: np.ndarray) -> float:
    first, second = moments(a), moments(b)
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


# Moments


def test_moments_are_numpys() -> None:
    x = normal(0, 50, 4).astype(np.float32)
    result = moments(x)
    assert result.count == 50
    np.testing.assert_allclose(result.mean, x.astype(np.float64).mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(result.covariance, np.cov(x.astype(np.float64).T), atol=1e-14)


def test_a_mean_far_above_the_deviation_costs_no_digits() -> None:
    """The float32 features minus 1e4 are exact in float64, and their covariance is well posed."""
    x = (1e4 + 1e-2 * normal(1, 400, 3)).astype(np.float32)
    near = x.astype(np.float64) - 1e4
    result = moments(x)
    np.testing.assert_allclose(result.covariance, np.cov(near.T), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(result.mean - 1e4, near.mean(axis=0), atol=1e-11)


def test_moments_are_the_same_in_any_order() -> None:
    x = (5.0 + normal(2, 60, 6)).astype(np.float32)
    whole, shuffled = moments(x), moments(x[np.random.default_rng(3).permutation(60)])
    assert shuffled.count == whole.count
    np.testing.assert_allclose(shuffled.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(shuffled.scatter, whole.scatter, rtol=1e-12, atol=1e-12)


def test_no_covariance_from_one_row() -> None:
    one = moments(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="needs at least 2 rows, not 1"):
        _ = one.covariance


# The Fréchet distance


def test_diagonal_covariances_have_a_closed_form() -> None:
    m1, m2 = normal(5, 2, 5)
    s1, s2 = np.abs(normal(6, 2, 5))
    expected = np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2)
    actual = frechet_distance(m1, np.diag(s1**2), m2, np.diag(s2**2))
    assert actual == pytest.approx(expected, rel=1e-12)


def test_commuting_covariances_have_a_closed_form() -> None:
    """With common eigenvectors the covariances' part is |S1^{1/2} - S2^{1/2}|_F^2."""
    q, (s1, s2), zero = rotation(7, 6), np.abs(normal(8, 2, 6)), np.zeros(6)
    actual = frechet_distance(zero, (q * s1**2) @ q.T, zero, (q * s2**2) @ q.T)
    assert actual == pytest.approx(np.sum((s1 - s2) ** 2), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_textbook_formula(seed: int) -> None:
    a, b, (m1, m2) = spd(seed, 12), spd(seed + 50, 12), normal(seed, 2, 12)
    root = linalg.sqrtm(a @ b)
    expected = np.sum((m1 - m2) ** 2) + np.trace(a + b - 2.0 * np.real(root))
    assert np.linalg.norm(a @ b - b @ a) > 0.1  # the case that no closed form covers
    assert frechet_distance(m1, a, m2, b) == pytest.approx(expected, rel=1e-10)


def test_equal_sets_are_at_zero_and_others_are_not() -> None:
    for rows in (100, 4):
        x = normal(9, rows, 10).astype(np.float32)
        assert 0.0 <= fid(x, x) < 1e-12
        assert 0.0 <= fid(x, x[::-1]) < 1e-12
        assert fid(x, x + np.float32(0.01)) == pytest.approx(10 * 0.01**2, rel=1e-4)


def test_a_point_mass_leaves_the_other_variance() -> None:
    zero = np.zeros((4, 4))
    assert frechet_distance(np.zeros(4), zero, np.zeros(4), spd(10, 4)) == pytest.approx(
        np.trace(spd(10, 4)), rel=1e-14
    )
    assert frechet_distance(np.zeros(4), zero, np.ones(4), zero) == 4.0


@pytest.mark.parametrize("rows", [(5, 8), (5, 300)])
def test_it_is_exact_where_features_outnumber_rows(rows: tuple[int, int]) -> None:
    """Low-dimensional sets, rotated into 120 dimensions, are as far apart as they were."""
    a = np.concatenate(
        [normal(11, rows[0], 9) * np.linspace(0.1, 30, 9), np.zeros((rows[0], 3))], 1
    )
    b = 1.0 + normal(12, rows[1], 12)
    basis = rotation(13, 120)[:12]
    m, n = np.cov(a.T), np.cov(b.T)
    low = frechet_distance(a.mean(axis=0), m, b.mean(axis=0), n)
    assert fid(a @ basis, b @ basis) == pytest.approx(low, rel=1e-12)
    # Tr (S1 S2)^{1/2} from the eigenvalues of a matrix with no null space.
    centred = a - a.mean(axis=0)
    inner = np.linalg.eigvalsh(centred @ n @ centred.T / (rows[0] - 1))
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(m + n)
    expected -= 2.0 * np.sqrt(inner[inner > 1e-10 * inner[-1]]).sum()
    assert low == pytest.approx(expected, rel=1e-12)


def test_a_singular_covariance_beside_a_regular_one_is_exact() -> None:
    """A rotated diagonal pair, 20 of 200 directions in the first: no digit is lost to the rest."""
    q = rotation(14, 200)
    s1, s2 = np.r_[np.full(20, 2.0), np.zeros(180)], np.linspace(1.0, 3.0, 200)
    zero = np.zeros(200)
    actual = frechet_distance(zero, (q * s1**2) @ q.T, zero, (q * s2**2) @ q.T)
    assert actual == pytest.approx(np.sum((s1 - s2) ** 2), rel=1e-13)


def test_it_is_symmetric_and_does_not_see_rotations_or_order() -> None:
    a, b = normal(15, 40, 8), 0.3 + normal(16, 30, 8) @ spd(17, 8)
    expected = fid(a, b)
    q = rotation(18, 8)
    assert expected > 1.0
    assert fid(b, a) == pytest.approx(expected, rel=1e-12)
    assert fid(a @ q, b @ q) == pytest.approx(expected, rel=1e-12)
    assert fid(3.0 + a[::-1], 3.0 + b) == pytest.approx(expected, rel=1e-12)
    assert fid(2.0 * a, 2.0 * b) == pytest.approx(4.0 * expected, rel=1e-12)
    assert abs(fid(a @ q, b) - expected) > 0.01  # but a rotation of one set is seen


def test_rounding_in_a_covariance_is_forgiven() -> None:
    """One that was stored in float32 is not exactly symmetric and has negative eigenvalues."""
    x = normal(19, 4, 30)
    cov = np.cov(x.T).astype(np.float32)
    assert np.linalg.eigvalsh(cov)[0] < 0
    cov[0, 1] = np.nextafter(cov[0, 1], np.float32(9))
    exact = frechet_distance(np.zeros(30), np.cov(x.T), np.zeros(30), spd(20, 30))
    assert frechet_distance(np.zeros(30), cov, np.zeros(30), spd(20, 30)) == pytest.approx(
        exact, rel=1e-3
    )


BAD_GAUSSIANS = {
    r"mean1 and cov1 must be \[D\] and \[D, D\].*\[3\] and \[2, 2\]": (np.zeros(3), np.eye(2)),
    r"mean1 and cov1 .*\[1, 2\] and \[2, 2\]": (np.zeros((1, 2)), np.eye(2)),
    r"mean1 and cov1 .*\[2\] and \[2, 3\]": (np.zeros(2), np.zeros((2, 3))),
    r"mean1 and cov1 .*\[0\] and \[0, 0\]": (np.zeros(0), np.zeros((0, 0))),
    "must have the same number of features, not 3 and 2": (np.zeros(3), np.eye(3)),
    "mean1 must be finite": (np.array([np.nan, 0]), np.eye(2)),
    "cov1 must be finite": (np.zeros(2), np.diag([1, np.inf])),
    "cov1 must be symmetric": (np.zeros(2), np.array([[1, 0.1], [0.2, 1]])),
    "cov1 must be positive semi-definite, but has the eigenvalue -0.5": (
        np.zeros(2),
        np.diag([1, -0.5]),
    ),
}


@pytest.mark.parametrize("message", BAD_GAUSSIANS)
def test_what_is_no_gaussian_is_refused(message: str) -> None:
    bad, good = BAD_GAUSSIANS[message], (np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=message):
        frechet_distance(*bad, *good)
    if "same number" not in message:
        with pytest.raises(ValueError, match=message.replace("1 ", "2 ").replace("cov1", "cov2")):
            frechet_distance(*good, *bad)


def test_moments_are_a_plain_tuple() -> None:
    count, mean, scatter = moments(normal(21, 7, 2))
    assert Moments(count, mean, scatter).count == 7 and scatter.shape == (2, 2)
