"""Launchers run on login nodes and in schedulers' scripts: they must not load an engine."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["plan", "job", "live_table", "sweep", "report", "ledger"])
def test_a_launcher_loads_no_engine(module: str) -> None:
    if module in ("job", "sweep"):
        pytest.importorskip("submitit", reason="no submitit: pip install -e '.[launch]'")
    script = f"import launch.{module}, sys; print({{'jax', 'diffusion'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
