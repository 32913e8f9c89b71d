"""The distance to the truth: its estimates, what ranks whom, and the page that shows it."""

import csv
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.stats import norm

from benchmarks import divergence, mixture, truth
from diffusion import paths, samplers
from diffusion.structs import Levels, Sampler
from tests.started import ROOT

pytestmark = pytest.mark.slow  # a page of a benchmark, which walks some hundred ways
FAST = truth.Effort(cells=2**12, draws=2**14, shares=8, neighbours=8)
DOCUMENT = ROOT / "docs" / "truth.md"
ENDS = np.linspace(-8.0, 8.0, 4001)
MASS = np.diff(norm.cdf(ENDS))


def of_normal_draws(x: np.ndarray) -> float:
    return divergence.of_draws(x, norm.logcdf, norm.logsf, neighbours=64)


# --- Divergences ---


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.4, 0.7), (-30.0, 2.0), (30.0, 2.0)])
def test_gaussian_samples_of_a_gaussian_have_their_divergence(
    mean: float, deviation: float
) -> None:
    expected = 0.5 * (deviation**2 + mean**2 - 1.0) - np.log(deviation)
    found = divergence.of_map(mean + deviation * ENDS, MASS, norm.logpdf)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    turned = divergence.of_map(mean - deviation * ENDS, MASS, norm.logpdf)
    assert turned == pytest.approx(found, rel=1e-6, abs=1e-9)
    n = 2**16
    x = mean + deviation * np.random.default_rng(0).standard_normal(n)
    assert of_normal_draws(x) == pytest.approx(
        expected, abs=5 * np.sqrt((1 / 64 + 4 * expected) / n)
    )


def test_where_a_map_folds_densities_add() -> None:
    """|x| of N(0, 1) has twice its density."""
    assert divergence.of_map(abs(ENDS), MASS, norm.logpdf) == pytest.approx(np.log(2.0), rel=1e-4)


def test_one_point_has_no_density() -> None:
    assert divergence.of_map(np.zeros(5), np.ones(4), norm.logpdf) == np.inf
    assert of_normal_draws(np.zeros(1000)) == np.inf
    with pytest.raises(ValueError, match="neighbours = 64 must be 1 to 10, the number of samples"):
        of_normal_draws(np.zeros(10))


def test_true_draws_score_the_floor() -> None:
    with jax.enable_x64(True):
        kl, error = truth.floor(FAST)
    assert abs(kl) < 4.0 * error < 0.02


# --- Samplers ---


def distance(
    section: dict[str, Any], name: str, steps: int, effort: truth.Effort = FAST
) -> truth.Distance:
    with jax.enable_x64(True):
        return truth.distance(truth.walks(section, name, "fixed_small"), steps, effort)


def test_the_divergence_falls_faster_the_higher_the_order() -> None:
    """At twice the order, as that of near densities is the square of their difference."""
    section, fine = truth.formulations()["path edm"], FAST._replace(cells=2**16)
    of_order: dict[int, str] = {}
    for name in samplers.SAMPLERS:
        flags = truth.flags_of(name)
        if flags.order and not (flags.stochastic or flags.adaptive):
            of_order.setdefault(flags.order, name)
    slopes = []
    for name in dict(sorted(of_order.items())).values():
        few, many = (distance(section, name, steps, fine) for steps in (16, 48))
        slopes.append(np.log(few.kl / many.kl) / np.log(many.evaluations / few.evaluations))
    assert len(slopes) > 2 and min(np.diff(slopes)) > 1.0, slopes
    assert slopes[0] == pytest.approx(2.0, abs=0.3)


def quiet(make: Any, levels: Levels, /) -> Sampler:
    """A sampler whose noise is too small by a fifth."""
    sampler = make(levels)

    def step(model: Any, x_t: Any, t: Any, noise: Any, memory: Any) -> Any:
        return sampler.step(model, x_t, t, lambda j: 0.8 * noise(j), memory)

    return sampler._replace(step=step)


def test_a_sampler_that_is_wrong_is_farther(monkeypatch) -> None:
    section = truth.formulations()["chain linear"]
    right = distance(section, "ancestral", 100)
    wrong = functools.partial(quiet, samplers.ancestral)
    monkeypatch.setattr(samplers, "SAMPLERS", {"ancestral": wrong})
    assert distance(section, "ancestral", 100).kl > right.kl + 10.0 * right.error


# --- The page ---


def tables(text: str) -> dict[str, list[list[str]]]:
    """The cells of the table below each heading."""
    found = {}
    for part in text.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[part.splitlines()[0]] = [cells[0], *cells[2:]]
    return found


def check_page(document: Path, budgets: tuple[int, ...]) -> None:
    """A table for each formulation, a row for each sampler that it can have."""
    ranking, *shown = tables(document.read_text()).items()
    assert ranking[1][0] == ["place", *map(str, budgets)]
    assert dict(shown).keys() == {name.capitalize() for name in truth.formulations()}
    for name, section in truth.formulations().items():
        head, *lines = dict(shown)[name.capitalize()]
        assert head == ["sampler", "spacing", *map(str, budgets), "its own steps"]
        able = {
            label
            for label, (sampler, _) in truth.walkers().items()
            if "path" in section or not truth.flags_of(sampler).needs_path
        }
        assert {line[0] for line in lines} == able and len(lines) == len(able)
        for label, _, *cells in lines:
            adaptive = truth.flags_of(truth.walkers()[label][0]).adaptive
            assert (cells[-1] != "–") == adaptive == (set(cells[:-1]) == {"–"})
    with document.with_suffix(".csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == truth.Row._fields
    assert {row["formulation"] for row in rows} == set(truth.formulations())
    assert all(float(r["evaluations"]) <= float(r["budget"]) for r in rows if r["budget"])


def test_the_page_in_docs_has_what_the_tables_have() -> None:
    check_page(DOCUMENT, truth.BUDGETS)


def test_a_sampler_and_a_path_that_are_added_have_their_rows(monkeypatch, tmp_path) -> None:
    own_steps = next(name for name in samplers.SAMPLERS if truth.flags_of(name).adaptive)
    added = {name: samplers.SAMPLERS[name] for name in ("ddim", own_steps)}
    added["added"] = samplers.ddim
    monkeypatch.setattr(samplers, "SAMPLERS", added)
    monkeypatch.setattr(paths, "PATHS", {"added": paths.straight})
    monkeypatch.setattr(truth, "CHAINS", ())
    rows = list(truth.measure(FAST, (1, 4)))
    assert len(rows) == 2 * 2 + 1
    truth.write(rows, tmp_path / "page", (1, 4), FAST)
    check_page(tmp_path / "page.md", (1, 4))
    assert {row.kl for row in rows if row.budget == 1} == {np.inf}  # from pure noise
    assert (tmp_path / "page.png").stat().st_size > 10_000
    text = (tmp_path / "page.md").read_text()
    for number in (*mixture.DATA.means, mixture.DATA.deviation, f"{FAST.cells:,}"):
        assert str(number) in text
