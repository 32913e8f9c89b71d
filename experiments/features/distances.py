"""Euclidean distances between sets of feature rows, in blocks, so that memory stays bounded.

All are float64. |x - y|^2 is expanded so that a product of matrices does the work, about a row in
the middle of each block, and computed from the difference itself wherever the expansion cancels.
"""

from collections.abc import Iterator

import numpy as np

CANCELLED = 1e-6  # |x - y|^2 below this share of |x|^2 + |y|^2 has lost 6 of its 16 digits
BLOCK = 2048  # rows; a block of distances takes 8 BLOCK^2 bytes, with its copies about 100 MiB


def middle(x: np.ndarray) -> np.ndarray:
    """f64[D], the row of x, f64[N, D], nearest to the mean.

    A row, because its differences to the others keep the grid that the features lie on: equal
    distances between points of a lattice stay equal, which they do not about the mean itself.
    """
    return x[np.square(x - x.mean(axis=0)).sum(axis=1).argmin()]


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `size`, the last one shorter, that cover range(count)."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2, f64[N, M] >= 0, to about 9 digits, and exactly 0 between equal rows.

    Args:
        x: f64[N, D]. Slower, though as exact, where many pairs lie close together and far from the
            middle of x.
        y: f32 or f64[M, D].
    """
    origin = middle(x)
    x, y = x - origin, y - origin
    scale = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    result = scale - 2.0 * (x @ y.T)
    i, j = np.nonzero(result < CANCELLED * scale)
    for part in blocks(i.size, max(x.shape[0], y.shape[0])):
        result[i[part], j[part]] = np.square(x[i[part]] - y[j[part]]).sum(axis=1)
    return result


def kth_nearest(x: np.ndarray, y: np.ndarray | None, k: int, block: int) -> np.ndarray:
    """The squared distance of every row of x to the k-th nearest row of y.

    Args:
        x: f32[N, D].
        y: f32[M, D] with M >= k; None for x itself, each row then not being its own neighbour
            (N > k), though another row that equals it is one.
        k: at least 1.
        block: rows of x and of y at a time.

    Returns:
        f64[N].
    """
    itself, y = y is None, x if y is None else y
    result = np.empty(x.shape[0])
    for rows in blocks(x.shape[0], block):
        left = x[rows].astype(np.float64)
        nearest = np.full((left.shape[0], k), np.inf)
        for columns in blocks(y.shape[0], block):
            distances = squared(left, y[columns])
            if itself and rows == columns:
                np.fill_diagonal(distances, np.inf)
            nearest = np.concatenate([nearest, distances], axis=1)
            nearest = np.partition(nearest, k - 1, axis=1)[:, :k]
        result[rows] = nearest.max(axis=1)
    return result


def within(x: np.ndarray, centres: np.ndarray, radii: np.ndarray, block: int) -> np.ndarray:
    """Whether each row of x lies in at least one closed ball.

    Args:
        x: f32[N, D].
        centres: f32[M, D].
        radii: f64[M], squared.
        block: as for `kth_nearest`.

    Returns:
        bool[N].
    """
    result = np.zeros(x.shape[0], bool)
    for rows in blocks(x.shape[0], block):
        left = x[rows].astype(np.float64)
        for columns in blocks(centres.shape[0], block):
            distances = squared(left, centres[columns])
            result[rows] |= (distances <= radii[columns]).any(axis=1)
    return result
