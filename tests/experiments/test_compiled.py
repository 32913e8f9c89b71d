"""The program's own compiler settings give right numbers; the tests run under others."""

import json
import os
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments import devices
from tests.started import ROOT, run


@pytest.mark.slow
def test_every_reported_number_is_what_single_operations_give(data_dir: pathlib.Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = run(
        [sys.executable, "-m", "tests.experiments.compiled", str(data_dir)],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        timeout=1200,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("sum") == 2.0**30
    assert set(found) == {"bound", "samples", "train step", "flow", "features"}
    assert all(difference < 1e-4 for difference in found.values()), found


def test_everything_is_compiled_through_one_function() -> None:
    """Nothing in the program calls jax.jit but `devices`, whose options every caller gets.

    What says that it is called within such a function gets them from there.
    """
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("experiments", "launch", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"jax\.(jit|pmap)\b", line.partition("#")[0]) and "`" not in line
        if "# within devices.jit" not in line
    ]
    assert all(line.startswith("experiments/devices.py") for line in found), found
    assert not any("jax.jit" in path.read_text() for path in (ROOT / "diffusion").rglob("*.py"))


@pytest.mark.parametrize("precision", devices.PRECISIONS)
def test_the_precision_reaches_every_product(precision: str) -> None:
    x = jnp.ones((4, 4))
    text = str(devices.jit(lambda x: x @ x @ x, precision=precision).trace(x).jaxpr).lower()
    assert text.count("dot_general") == 2
    assert text.count("precision.highest") == (4 if precision == "highest" else 0)


def test_the_options_are_known_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CPU_OPTIONS", {"xla_no_such_option": "x"})
    devices.compiler_options.cache_clear()
    try:
        assert devices.compiler_options() == {}
        assert int(devices.jit(lambda x: x + 1, precision="default")(jnp.ones((), int))) == 2
    finally:
        monkeypatch.undo()
        devices.compiler_options.cache_clear()
    if jax.__version__.startswith("0.10."):
        assert devices.compiler_options() == dict(devices.CPU_OPTIONS)
