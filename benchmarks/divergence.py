"""KL divergence of samples of one value to data whose law is known, exact or by spacings."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from scipy.special import digamma

Row = Float64[np.ndarray, " n"]
Function = Callable[[Row], Row]


def of_map(end: Row, mass: Row, log_density: Function) -> float:
    """KL(samples || data) in nats of where a map brings cells, by change of variables.

    The map is taken for linear within a cell, and may fold: densities of cells that come to the
    same place add. inf where a whole cell comes to one point, which has no density.

    Args:
        end: f64[n + 1], where the ends of the cells come to, cell by cell.
        mass: f64[n], probability of each cell before it is moved.
        log_density: of the data.
    """
    low, high = np.minimum(end[:-1], end[1:]), np.maximum(end[:-1], end[1:])
    if not (high > low).all():
        return np.inf
    height = mass / mass.sum() / (high - low)
    places = np.concatenate([low, high])
    order = np.argsort(places, kind="stable")
    places = places[order]
    density = np.cumsum(np.concatenate([height, -height])[order])[:-1]
    inside = (np.diff(places) > 0.0) & (density > 0.0)
    middle, width = (0.5 * (places[1:] + places[:-1]))[inside], np.diff(places)[inside]
    density = density[inside]
    return float(np.sum(width * density * (np.log(density) - log_density(middle))))


def of_draws(x: Row, log_cumulative: Function, log_exceeding: Function, neighbours: int) -> float:
    """An estimate of KL(samples || data) in nats, by spacings of the data's distribution function.

    F(x) of true draws is uniform, the difference of two of n sorted ones that are m places apart
    is Beta(m, n + 1 - m), and its logarithm has the mean digamma(m) - digamma(n + 1): the estimate
    is by how much the logarithms are less in the mean (Vasicek 1976). So it has no bias where
    samples are true draws; where they are not, it does not see what is finer than m of them.

    Args:
        x: f64[n], samples.
        log_cumulative, log_exceeding: log P(x_0 <= x) and log P(x_0 > x) of the data, each of which
            has digits where the other has lost them.
        neighbours: m.

    Raises:
        ValueError: unless 1 <= neighbours <= n.
    """
    if not 1 <= neighbours <= x.size:
        raise ValueError(f"neighbours = {neighbours} must be 1 to {x.size}, the number of samples.")
    x = np.sort(x)
    below = np.concatenate([[-np.inf], log_cumulative(x), [0.0]])
    above = np.concatenate([[0.0], log_exceeding(x), [-np.inf]])
    first, last = slice(None, -neighbours), slice(neighbours, None)
    lower = below[first] < np.log(0.5)
    larger = np.where(lower, below[last], above[first])
    smaller = np.where(lower, below[first], above[last])
    with np.errstate(divide="ignore"):
        log_share = larger + np.log(-np.expm1(smaller - larger))
    return float(digamma(neighbours) - digamma(x.size + 1) - log_share.mean())
