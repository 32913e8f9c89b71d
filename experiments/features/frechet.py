"""The Fréchet distance between Gaussians fitted to features (Heusel et al. 2017, Eq. 6: the FID).

Moments are sums over rows, so that sets of any size are gathered in parts:
`functools.reduce(merge, map(moments, batches))`.
"""

from typing import NamedTuple

import numpy as np

from experiments.features import checks

ASYMMETRY = 1e-5  # relative to the largest entry; what float32 products leave
INDEFINITE = 1e-3  # a negative eigenvalue of this share of the largest one is no rounding


class Moments(NamedTuple):
    """Count, mean and spread of a set of feature rows; enough for a Gaussian fitted to it."""

    count: int  # type: ignore[assignment]  # a field, in place of tuple's method
    mean: np.ndarray  # f64[D]
    scatter: np.ndarray  # f64[D, D], the sum of (x - mean)(x - mean)^T; symmetric

    @property
    def covariance(self) -> np.ndarray:
        """f64[D, D], scatter / (count - 1): unbiased.

        Raises:
            ValueError: if there are fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 rows, not {self.count}.")
        return self.scatter / (self.count - 1)


def moments(features: np.ndarray) -> Moments:
    """Moments of one batch, centred in float64 before anything is squared.

    Args:
        features: f32[N, D], N >= 1, finite, any range; 16 N D bytes are taken for a short time.

    Raises:
        ValueError: if `features` is not such an array.
    """
    x = checks.rows("features", features).astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    rest = x.mean(axis=0)  # what rounding left of the mean
    x -= rest
    scatter = x.T @ x
    return Moments(x.shape[0], mean + rest, (scatter + scatter.T) / 2)


def _gaussian(which: str, mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the exactly symmetric covariance in float64, checked; ValueError if not one."""
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or mean.size < 1 or cov.shape != (mean.size, mean.size):
        raise ValueError(
            f"mean{which} and cov{which} must be [D] and [D, D] with D at least 1, "
            f"not {list(mean.shape)} and {list(cov.shape)}."
        )
    for name, x in (("mean", mean), ("cov", cov)):
        if not np.isfinite(x).all():
            raise ValueError(f"{name}{which} must be finite.")
    if np.abs(cov - cov.T).max() > ASYMMETRY * np.abs(cov).max():
        raise ValueError(f"cov{which} must be symmetric.")
    return mean, (cov + cov.T) / 2


def _factor(which: str, cov: np.ndarray) -> np.ndarray:
    """F with F F^T = cov, f64[D, rank]: eigenvectors times the roots of their eigenvalues.

    Eigenvalues below D eps times the largest one, negative ones among them, are rounding and count
    as zero. To keep the positive ones would cost the digits of a root, 1e-8 instead of 1e-16, in
    every direction that a set of fewer rows than features does not reach.

    Raises:
        ValueError: if an eigenvalue is too negative for rounding.
    """
    values, vectors = np.linalg.eigh(cov)
    largest = np.abs(values).max()
    if values[0] < -INDEFINITE * largest:
        raise ValueError(
            f"cov{which} must be positive semi-definite, but has the eigenvalue {values[0]:.3g} "
            f"beside the largest {values[-1]:.3g}."
        )
    kept = values > values.size * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982; the FID's formula).

    |m1 - m2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^{1/2}. The last trace is the nuclear norm of
    S1^{1/2} S2^{1/2}, which is that of F1^T F2 for any F_i with F_i F_i^T = S_i: the sum of the
    singular values of a matrix [rank S1, rank S2], with no root of a matrix that is not symmetric
    and no offset added to a singular one.

    Args:
        mean1, mean2: f64[D], finite.
        cov1, cov2: f64[D, D], finite, symmetric and positive semi-definite of any rank.

    Returns:
        In squared units of the features, >= 0; rounding below zero is cut off.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, or a covariance is not one.
    """
    mean1, cov1 = _gaussian("1", mean1, cov1)
    mean2, cov2 = _gaussian("2", mean2, cov2)
    if mean1.size != mean2.size:
        raise ValueError(
            f"The two Gaussians must have the same number of features, "
            f"not {mean1.size} and {mean2.size}."
        )
    product = _factor("1", cov1).T @ _factor("2", cov2)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * overlap
    return max(float(distance), 0.0)
