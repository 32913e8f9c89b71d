"""The bound in continuous time as a metric: of a path, whatever the levels of its chain."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import evaluate
from experiments.build import build
from experiments.configs.continuous import CONTINUOUS
from experiments.metrics.metric import Result
from experiments.workdir.origin import Loaded, Origin

Make = Callable[[], ConfigDict]


def of(make: Make, name: str, **fields: object) -> ConfigDict:
    config = make()
    CONTINUOUS[name].change(config)
    config.sample.num_steps = config.train.preview_num_steps = 4
    config.evaluate.update(fields)
    return config


def measured(config: ConfigDict, metric: str, folder: pathlib.Path) -> Result:
    """Of a network whose output is far from zero."""
    experiment = build(config)
    params = jax.tree.map(lambda x: x + 0.1, experiment.method.init(jax.random.key(0)))
    loaded = Loaded(0, params, Origin("raw", "nothing"))
    return evaluate.METRICS[metric].measure(evaluate.context_of(experiment, folder, loaded))


def numbers(found: Result) -> dict[str, float]:
    return {name: value["value"] for name, value in found.values.items()}


def test_it_is_what_the_chains_bound_tends_to(tiny: Make, tmp_path: pathlib.Path) -> None:
    """Of EDM; the bounds themselves do so on every path (tests/diffusion/test_continuous_bound)."""
    config = of(tiny, "edm", num_strata=200)
    found = measured(config, "bpd_continuous", tmp_path)
    parts = numbers(found)
    total = parts.pop("bits_per_dim")
    assert sum(parts.values()) == pytest.approx(total, rel=1e-9)
    assert found.values["bits_per_dim"]["standard_error"] > 0
    assert "num_timesteps" not in found.protocol and found.protocol["num_strata"] == 200
    chains = []
    for num_timesteps in (1500, 3000):
        config.path.num_timesteps = num_timesteps
        chains.append(numbers(measured(config, "bpd", tmp_path)))
    for chain in chains:
        assert parts["prior"] == pytest.approx(chain["prior"], rel=1e-5, abs=1e-7)
        assert parts["decoder"] == pytest.approx(chain["decoder"], rel=1e-4)
    # Which falls towards it at the first order in the number of steps.
    assert chains[1]["kl"] < chains[0]["kl"]
    assert parts["kl"] == pytest.approx(2.0 * chains[1]["kl"] - chains[0]["kl"], rel=0.03)


def test_it_depends_on_neither_levels_nor_batches(tiny: Make, tmp_path: pathlib.Path) -> None:
    config = of(tiny, "vdm")
    first = numbers(measured(config, "bpd_continuous", tmp_path / "a"))
    config.path.num_timesteps, config.evaluate.batch_size = 50, 3
    again = numbers(measured(config, "bpd_continuous", tmp_path / "b"))
    np.testing.assert_allclose(list(again.values()), list(first.values()), rtol=1e-5)
    config.evaluate.num_strata = 4
    other = numbers(measured(config, "bpd_continuous", tmp_path / "c"))
    assert other["kl"] != first["kl"] and other["decoder"] == pytest.approx(again["decoder"])


def test_a_chain_is_refused_before_anything_is_computed(tiny: Make) -> None:
    config = tiny()
    config.evaluate.metrics = "bpd_continuous"
    with pytest.raises(ValueError, match=r"metrics: bpd_continuous .*of a chain.*choose bpd\."):
        evaluate.check(build(config))
    evaluate.check(build(of(tiny, "vdm", metrics="bpd_continuous")))
