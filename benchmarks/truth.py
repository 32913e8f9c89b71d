"""Distance of every sampler's samples to the truth, on data whose density is known.

    python -m benchmarks.truth --out=docs/truth

writes docs/truth.md, .csv and .png. The data are the mixture of two Gaussians of
`benchmarks.mixture`, one value each, and the denoiser is E[x_0 | x_t] itself, so that the
discretisation alone errs. Every sampler of SAMPLERS walks every path of PATHS on the grid that
`config.sample.spacing = auto` takes there, and the chains CHAINS of 1,000 timesteps on its own
spacing. Everything is computed in float64 on tables of float32.
"""

import argparse
import csv
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.special import ndtr

from benchmarks import divergence, mixture
from diffusion import paths, samplers
from diffusion.flow_sampler import STOPS
from diffusion.grids import log_snr
from diffusion.probability_flow import bind, make_flow
from diffusion.structs import Parameterization, Point, Sampler
from diffusion.variances import VARIANCES
from diffusion.walk import Samples, begin, end, start, walk
from experiments import devices
from experiments.figures.figure import blank
from experiments.files import markdown
from experiments.files.atomic import write_text
from experiments.files.templates import render
from experiments.methods.method import Encoder
from experiments.methods.walks import Walks, respaced, walks_of
from experiments.workdir.results import provenance

BUDGETS = (1, 2, 5, 10, 20, 50, 100)  # evaluations of the denoiser
CHAINS = ("linear", "cosine")
REACH = 6.5  # deviations of x_T on either side of 0 that the cells cover
BEST = 5  # rows of the first table
_CLEAN: Any = map(np.float64, (1.0, 0.0, 0.0, 0.0, 0.0))
CLEAN: Any = Point(*_CLEAN)
EXACT = Parameterization(
    lambda now, x_0, eps, x_t: x_t,
    lambda now, output, x_t: mixture.x_0_given_x_t(now, x_t),
    predicts_mean=False,
    needs_signal=False,
)


class Effort(NamedTuple):
    """How finely distances are computed.

    cells: of x_T, even, of samplers without noise.
    draws: of the others, in all.
    shares: parts of the draws, whose estimates tell the error of the whole's.
    neighbours: places between two draws whose distance is taken.
    """

    cells: int = 2**17
    draws: int = 2**17
    shares: int = 8
    neighbours: int = 32


class Row(NamedTuple):
    """One sampler on one formulation within one budget.

    budget: evaluations allowed; None where the sampler chooses its own steps.
    evaluations: taken, the mean over samples.
    kl: KL(samples || data), nats.
    error: of kl: by what half the cells change it, or the standard error over shares.
    estimate: kl by spacings too, where kl is exact; else kl.
    start: KL of the law that x_T is drawn from to the exact one there, nats.
    """

    formulation: str
    sampler: str
    spacing: str
    budget: int | None
    steps: int
    evaluations: float
    kl: float
    error: float
    estimate: float
    start: float

    @property
    def at_most(self) -> float:
        """kl, or three times its error where it is less than that."""
        return max(self.kl, 3.0 * self.error)


# --- What is walked ---


def _pixels() -> Encoder:
    """One value, as it is."""

    def same(x: Any) -> Any:
        return x

    return Encoder((1,), same, lambda x, keys: x, same, same)


def formulations() -> dict[str, dict[str, Any]]:
    """Name -> the section of a config that describes it."""
    return {f"path {name}": {"path": {"name": name}} for name in paths.PATHS} | {
        f"chain {name}": {"schedule": {"name": name, "num_timesteps": 1000}} for name in CHAINS
    }


def flags_of(name: str) -> Sampler:
    """A sampler, for what it says of itself."""
    entries: Any = paths.PATHS
    path = next(iter(entries.values()))()
    make: Any = samplers.SAMPLERS[name]
    found: Sampler = make(paths.grid(path, log_snr(path, 8)))
    return found


def walkers() -> dict[str, tuple[str, str]]:
    """Label -> (sampler, variance), one for each fixed variance where the sampler uses it."""
    fixed = [name for name, each in VARIANCES.items() if not each.extra_channels]
    found: dict[str, tuple[str, str]] = {}
    for name in samplers.SAMPLERS:
        if flags_of(name).uses_variance:
            found |= {f"{name}, {variance}": (name, variance) for variance in fixed}
        else:
            found[name] = (name, fixed[0])
    return found


def walks(section: dict[str, Any], sampler: str, variance: str) -> Walks:
    """The walks of a config with these choices, of the exact denoiser."""
    config = ConfigDict(
        {
            **section,
            "parameterization": {"name": "x_0"},
            "variance": {"name": variance},
            "sample": {
                "sampler": {"name": sampler},
                "spacing": {"name": "auto"},
                "threshold": {"name": "none"},
            },
        }
    )
    found = walks_of(config, _pixels())
    return found._replace(process=found.process._replace(parameterization=EXACT))


def _network(params: None, x_t: jax.Array, told: jax.Array) -> jax.Array:
    return x_t


def drawn(way: Walks, steps: int, x_T: np.ndarray | None, count: int = 0) -> Samples:
    """The samples from these x_T [n], or from `count` drawn ones; steps = 0: its own number."""
    chain = respaced(_network, way)(steps)
    sampler, path = way.sampler(chain.levels), way.process.path
    model: Any = functools.partial(chain.denoise, None)
    if sampler.continuous:
        model = bind(make_flow(_network, way.process), None, {})
    keys = jax.random.split(jax.random.key(0), count if x_T is None else len(x_T))

    @functools.partial(devices.jit, precision=devices.REPORTED)
    def run(keys: jax.Array, x_T: jax.Array | None) -> Samples:
        if x_T is None:
            state = begin(sampler, keys, (1,), 0, path.deviation if path else 1.0)
        else:
            state = start(sampler, x_T, 0)
        return end(walk(sampler, model, keys, state))

    return run(keys, None if x_T is None else jnp.asarray(x_T)[:, None])


def steps_within(way: Walks, budgets: Sequence[int]) -> list[int]:
    """The most steps that take no more evaluations than each budget; below 1: none.

    Evaluations are taken for affine in the steps. A walk that leaves some out takes fewer.
    """
    eight, nine = (int(drawn(way, n, np.ones(1)).evaluations[0]) for n in (8, 9))
    return [min(way.whole.num_steps, (budget - eight) // (nine - eight) + 8) for budget in budgets]


# --- How far samples are from the data ---


def _log_density(x: np.ndarray, now: Point = CLEAN) -> np.ndarray:
    return np.asarray(mixture.log_density(now, jnp.asarray(x)))


def _estimate(x: np.ndarray, effort: Effort) -> tuple[float, float]:
    """KL by spacings, and its standard error, from shares of the draws."""

    def of(part: np.ndarray) -> float:
        data = mixture.log_cumulative, mixture.log_exceeding
        return divergence.of_draws(part, *data, effort.neighbours)

    kl = of(x)
    if not np.isfinite(kl):
        return kl, 0.0
    found = [of(share) for share in x.reshape(effort.shares, -1)]
    return kl, float(np.std(found, ddof=1) / np.sqrt(effort.shares))


def floor(effort: Effort) -> tuple[float, float]:
    """The estimate of as many true draws, whose KL is 0, and its standard error."""
    return _estimate(np.asarray(mixture.draw(jax.random.key(7), (effort.draws,))), effort)


def _cells(effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    """Ends of even cells of N(0, 1), and the probability of each."""
    ends = np.linspace(-REACH, REACH, effort.cells + 1)
    return ends, np.diff(ndtr(ends))


def _deviation(way: Walks) -> float:
    return way.process.path.deviation if way.process.path else 1.0


def start_of(way: Walks, steps: int, effort: Effort) -> float:
    """KL of the law that x_T is drawn from to the exact one at the walk's last level, nats."""
    levels = way.levels(steps)[1]
    last = CLEAN._replace(signal=levels.signal[-1], noise=levels.noise[-1])
    ends, mass = _cells(effort)
    return divergence.of_map(_deviation(way) * ends, mass, lambda x: _log_density(x, last))


class Distance(NamedTuple):
    """What `Row` says of it."""

    evaluations: float
    kl: float
    error: float
    estimate: float


def distance(way: Walks, steps: int, effort: Effort) -> Distance:
    """Of a walk in so many steps; 0 is its own number."""
    if way.flags.stochastic:
        found = drawn(way, steps, None, effort.draws)
        kl, error = _estimate(np.asarray(found.x_0, np.float64)[:, 0], effort)
        return Distance(float(found.evaluations.mean()), kl, error, kl)
    ends, mass = _cells(effort)
    found = drawn(way, steps, _deviation(way) * ends)
    x_0 = np.asarray(found.x_0, np.float64)[:, 0]
    kl = divergence.of_map(x_0, mass, _log_density)
    half = divergence.of_map(x_0[::2], mass[::2] + mass[1::2], _log_density)
    x_T = np.random.default_rng(0).standard_normal(effort.draws)
    estimate, _ = _estimate(np.interp(x_T, ends, x_0), effort)
    evaluations = float(np.average(found.evaluations[:-1], weights=mass).round(6))
    return Distance(evaluations, kl, abs(kl - half) if np.isfinite(kl) else 0.0, estimate)


def measure(effort: Effort, budgets: Sequence[int] = BUDGETS) -> Iterator[Row]:
    """The rows of all samplers on all formulations."""
    with jax.enable_x64(True):
        for formulation, section in formulations().items():
            for label, (sampler, variance) in walkers().items():
                if "path" in section or not flags_of(sampler).needs_path:
                    way = walks(section, sampler, variance)
                    yield from _rows(
                        (formulation, label, way.spacing["name"]), way, effort, budgets
                    )


def _rows(
    about: tuple[str, str, str], way: Walks, effort: Effort, budgets: Sequence[int]
) -> Iterator[Row]:
    """Those of one sampler on one formulation."""
    if way.flags.adaptive:
        yield Row(*about, None, STOPS, *distance(way, 0, effort), start_of(way, STOPS, effort))
        return
    for budget, steps in zip(budgets, steps_within(way, budgets), strict=True):
        if steps >= 1:
            found = distance(way, steps, effort)
            assert found.evaluations <= budget, (about, steps, found.evaluations)
            yield Row(*about, budget, steps, *found, start_of(way, steps, effort))


# --- The page ---


def number(row: Row) -> str:
    """KL as a cell shows it."""
    if np.isinf(row.kl):
        return "∞"
    return f"{row.kl:.2g}" if row.kl >= row.at_most else f"< {row.at_most:.1g}"


def _cell(row: Row) -> str:
    return number(row) if row.budget else f"{number(row)} ({row.evaluations:.0f})"


def ranking(rows: Sequence[Row], budgets: Sequence[int]) -> str:
    """The nearest of all at each budget as Markdown, the nearest first."""
    columns = []
    for budget in budgets:
        found = sorted((row for row in rows if row.budget == budget), key=lambda row: row.at_most)
        columns.append([f"{r.sampler}, {r.formulation}: {number(r)}" for r in found[:BEST]])
    cells = [[str(place), *line] for place, line in enumerate(zip(*columns, strict=True), 1)]
    return markdown.table(["place", *map(str, budgets)], cells)


def table(rows: Sequence[Row], budgets: Sequence[int]) -> str:
    """The samplers on one formulation as Markdown, the nearest with most evaluations first."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.sampler, row.spacing), []).append(row)
    cells = []
    for (sampler, spacing), found in sorted(lines.items(), key=lambda line: line[1][-1].at_most):
        at = {row.budget: _cell(row) for row in found}
        cells.append([sampler, spacing, *(at.get(budget, "–") for budget in (*budgets, None))])
    return markdown.table(["sampler", "spacing", *map(str, budgets), "its own steps"], cells)


def page(rows: Sequence[Row], budgets: Sequence[int], effort: Effort, stem: str) -> str:
    """The whole page as Markdown; `stem` is the name of the files beside it."""
    with jax.enable_x64(True):
        by_chance = floor(effort)
    names = list(dict.fromkeys(row.formulation for row in rows))
    own = {name: [row for row in rows if row.formulation == name] for name in names}
    exact = [r for r in rows if not flags_of(r.sampler.partition(",")[0]).stochastic and r.kl < 1]
    small, adaptive = ([r for r in exact if bool(r.budget) == own] for own in (True, False))
    about = provenance(ConfigDict({"seed": 0, "precision": "float64"}))
    return render(
        Path(__file__).with_suffix(".jinja"),
        stem=stem,
        data=mixture.DATA,
        effort=effort,
        floor=by_chance,
        off=max((abs(row.estimate - row.kl) for row in small), default=0.0),
        error=max((row.error for row in small), default=0.0),
        adaptive_off=max((abs(row.estimate - row.kl) for row in adaptive), default=0.0),
        hardware=about["hardware"]["host"],
        jax=about["versions"]["jax"],
        ranking=ranking(rows, budgets),
        best=BEST,
        tables={name: table(own[name], budgets) for name in names},
        starts={name: max(row.start for row in own[name]) for name in names},
    )


def plot(rows: Sequence[Row], out: Path) -> None:
    """KL against evaluations, a panel for each formulation."""
    names = list(dict.fromkeys(row.formulation for row in rows))
    canvas = blank(figsize=(13.0, 3.4 * -(-len(names) // 3) + 1.0))
    axes = canvas.subplots(-(-len(names) // 3), 3, sharex=True, sharey=True, squeeze=False)
    labels = list(dict.fromkeys(row.sampler for row in rows))
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for name, axis in zip(names, axes.flat, strict=False):
        for place, label in enumerate(labels):
            at = [r for r in rows if (r.formulation, r.sampler) == (name, label)]
            points = [(r.evaluations, r.kl) for r in at if r.kl >= r.at_most]
            style: Any = dict(color=f"C{place % 10}", marker="os^"[place // 10], label=label)
            axis.plot(*zip(*points, strict=True) if points else ((), ()), **style, markersize=3.5)
        axis.set(title=name, xscale="log", yscale="log", xlabel="evaluations", ylabel="KL, nats")
        axis.grid(alpha=0.3)
    handles, shown = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, shown, loc="outside lower center", ncols=5, fontsize=8)
    canvas.savefig(out, dpi=100, metadata={"Software": None})


def write(rows: Sequence[Row], out: Path, budgets: Sequence[int], effort: Effort) -> None:
    """The page, the numbers behind it and their picture: OUT.md, OUT.csv, OUT.png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".csv").open("w", newline="") as stream:
        found = csv.writer(stream, lineterminator="\n")
        found.writerow(Row._fields)
        for row in rows:
            found.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in row])
    plot(rows, out.with_suffix(".png"))
    write_text(out.with_suffix(".md"), page(rows, budgets, effort, out.name))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures everything and writes the page."""
    parser = argparse.ArgumentParser("benchmarks.truth", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the page, without its suffix")
    options = parser.parse_args(argv)
    rows, effort = [], Effort()
    for row in measure(effort):
        print(f"{row.formulation}, {row.sampler}, {row.budget}: {number(row)}", flush=True)
        rows.append(row)
    write(rows, options.out, BUDGETS, effort)
    return 0


if __name__ == "__main__":
    sys.exit(main())
