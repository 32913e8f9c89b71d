"""Scores of samples from their logits or features: inception score, KID, precision and recall."""

from typing import NamedTuple

import numpy as np

from experiments.features import checks, distances

MOST = 10_000  # real rows of KID, and rows of either kind of precision and recall


class InceptionScore(NamedTuple):
    """Over the splits of a set: mean, and standard deviation with ddof = 0."""

    mean: float
    std: float


class KernelDistance(NamedTuple):
    """Over subsets: mean, standard deviation with ddof = 0, and how many rows a subset had."""

    mean: float
    std: float
    subset_size: int


class PrecisionRecall(NamedTuple):
    """Shares of one set inside the other's estimated manifold, each in [0, 1]."""

    precision: float
    recall: float


class Nearness(NamedTuple):
    """How near one set is to another, and how many rows of each are behind `covered`."""

    kernel: KernelDistance
    covered: PrecisionRecall
    fake: int
    real: int


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    """log sum exp over an axis, which stays with length 1; finite for finite x."""
    top = x.max(axis=axis, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True))


def inception_score(logits: np.ndarray, splits: int = 10) -> InceptionScore:
    """exp of the mean over x of KL(p(y|x) || p(y)), by parts (Salimans et al. 2016, Section 4).

    As in the authors' code, part i is the contiguous rows i N // splits to (i + 1) N // splits, and
    p(y) is the part's own mean; rows in an order by class therefore lower the score. Logarithms are
    kept throughout, so that a probability that underflows contributes 0.

    Args:
        logits: f32[N, K] before the softmax, finite, any range.
        splits: number of parts, 1 to N.

    Returns:
        Mean and standard deviation over the parts; each part's score is in [1, K] up to rounding.

    Raises:
        ValueError: if `logits` is not such an array or `splits` is out of range.
    """
    logits = checks.rows("logits", logits)
    count = logits.shape[0]
    if not 1 <= splits <= count:
        raise ValueError(f"splits = {splits} must be 1 to the number of rows, {count}.")
    scores = []
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits].astype(np.float64)
        log_p = part - _log_sum_exp(part, axis=1)
        log_marginal = _log_sum_exp(log_p, axis=0) - np.log(len(part))
        divergence = (np.exp(log_p) * (log_p - log_marginal)).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of f64[n, D] and f64[n, D] under (x.y / D + 1)^3, n >= 2."""
    n, width = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / width + 1.0) ** 3

    def off_diagonal_mean(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (n * (n - 1))

    cross = kernel(x, y).mean()
    return float(off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2.0 * cross)


def kernel_distance(
    x: np.ndarray, y: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID: the unbiased squared MMD under a cubic kernel (Bińkowski et al. 2018, Section 4).

    The estimator is Gretton et al. 2012, Eq. 3. Each of `subsets` estimates takes `subset_size`
    rows of x and of y, drawn from each without replacement.

    Args:
        x: f32[N, D], finite, N >= 2.
        y: f32[M, D], finite, M >= 2.
        subsets: at least 1.
        subset_size: at least 2; reduced to min(N, M) where it is larger, which the result records.
        seed: of the draws.

    Returns:
        Mean and standard deviation over subsets, without unit; being unbiased, the mean falls on
        both sides of zero when the distributions are equal.

    Raises:
        ValueError: if an argument is not such a one.
    """
    x, y = checks.same_width(x=x, y=y)
    checks.at_least("subsets", subsets, 1)
    checks.at_least("subset_size", subset_size, 2)
    for name, rows in (("x", x), ("y", y)):
        checks.at_least(f"Number of rows of {name}", rows.shape[0], 2)
    size = min(subset_size, x.shape[0], y.shape[0])
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(subsets):
        parts = [r[rng.choice(r.shape[0], size, replace=False)].astype(np.float64) for r in (x, y)]
        estimates.append(_polynomial_mmd(*parts))
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)), size)


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3, block: int = distances.BLOCK
) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, Eqs. 1 and 2).

    A set's manifold is the union of the closed balls about its rows that reach to the row's k-th
    nearest neighbour in the set, the row itself not counted. Precision is the share of `fake` in
    the manifold of `real`, recall the share of `real` in that of `fake`. Both depend on the numbers
    of rows, so compare only sets of the same sizes.

    Args:
        real: f32[N, D], finite, N > k.
        fake: f32[M, D], finite, M > k.
        k: at least 1.
        block: rows of either set at a time; sets memory and speed, not the result.

    Raises:
        ValueError: if an argument is not such a one.
    """
    real, fake = checks.same_width(real=real, fake=fake)
    checks.at_least("k", k, 1)
    checks.at_least("block", block, 1)
    for name, rows in (("real", real), ("fake", fake)):
        checks.at_least(f"With k = {k}, number of rows of {name}", rows.shape[0], k + 1)

    def share(points: np.ndarray, manifold: np.ndarray) -> float:
        radii = distances.kth_nearest(manifold, None, k, block)
        return float(distances.within(points, manifold, radii, block).mean())

    return PrecisionRecall(precision=share(fake, real), recall=share(real, fake))


def nearest_neighbour_ratio(
    fake: np.ndarray, train: np.ndarray, held_out: np.ndarray, block: int = distances.BLOCK
) -> float:
    """How far samples are from the training set, in units of how far new real images are.

    The median over `fake` of the distance to the nearest row of `train`, divided by the same median
    over `held_out`.

    Args:
        fake: f32[N, D], finite.
        train: f32[M, D], finite: what the model was trained on.
        held_out: f32[L, D], finite: real, from the same distribution, and not in `train`.
        block: rows of any set at a time; sets memory and speed, not the result.

    Returns:
        >= 0; near 1 for samples as new as new data, near 0 for copies of training images.

    Raises:
        ValueError: if an argument is not such a one, or more than half of `held_out` is in `train`.
    """
    fake, train, held_out = checks.same_width(fake=fake, train=train, held_out=held_out)
    checks.at_least("block", block, 1)

    def median(rows: np.ndarray) -> float:
        return float(np.median(np.sqrt(distances.kth_nearest(rows, train, 1, block))))

    unit = median(held_out)
    if unit == 0.0:
        raise ValueError("More than half of held_out is in train, so there is no unit of distance.")
    return median(fake) / unit


def evenly_chosen(features: np.ndarray) -> np.ndarray:
    """At most MOST rows, evenly spaced."""
    places = np.linspace(0, len(features) - 1, min(len(features), MOST)).round().astype(int)
    return features[places]


def nearness(fake: np.ndarray, real: np.ndarray) -> Nearness:
    """KID, precision and recall beside at most MOST real rows, whoever asks for them.

    KID draws its subsets from all of `fake`; precision and recall are of at most MOST of it.

    Args:
        fake: f32[N, D], finite, N >= 4.
        real: f32[M, D], likewise.
    """
    theirs, ours = evenly_chosen(real), evenly_chosen(fake)
    kernel, covered = kernel_distance(fake, theirs), precision_recall(theirs, ours)
    return Nearness(kernel, covered, len(ours), len(theirs))
