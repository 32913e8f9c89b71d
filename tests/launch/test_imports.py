"""Launchers run on login nodes and in schedulers' scripts: they must not load an engine."""

import sys

import pytest

from tests.started import run


@pytest.mark.parametrize("module", ["plan", "job", "live_table", "sweep", "report", "ledger"])
def test_a_launcher_loads_no_engine(module: str) -> None:
    if module in ("job", "sweep"):
        pytest.importorskip("submitit", reason="no submitit: pip install -e '.[launch]'")
    script = f"import launch.{module}, sys; print({{'jax', 'diffusion'}} & set(sys.modules))"
    done = run([sys.executable, "-c", script])
    assert done.stdout.strip() == "set()"
