"""The notebook of the documents runs from its first cell to its last, and its two files agree."""

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from experiments import train
from experiments.build import build

jupytext = pytest.importorskip("jupytext", reason="needs jupytext, in the extra `notebook`")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient, in the extra `notebook`")
pytest.importorskip("ipykernel", reason="needs ipykernel, in the extra `notebook`")

from jupytext.compare import NotebookDifference, compare_notebooks  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = ROOT / "docs" / "notebooks" / "trained_model.py"
NOTEBOOK = SOURCE.with_suffix(".ipynb")
PLACE = re.compile(r"""(?:^|[\s"'(=])(?:/[\w.-]+/[\w.-]+|[A-Z]:\\)""", re.MULTILINE)


@pytest.fixture(scope="module")
def labelled(
    tiny_unet: Callable[[], ConfigDict], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The run of a class-conditional model."""
    config, workdir = tiny_unet(), tmp_path_factory.mktemp("labelled")
    config.model.class_conditional = True
    train.train(build(config), workdir)
    return workdir


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def printed(notebook: Any) -> str:
    texts = [output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]
    return "\n".join(texts + [output.get("text", "") for output in outputs(notebook)])


def compare(notebook: Any, source: Any) -> None:
    compare_notebooks(notebook, source, fmt="py:percent", compare_ids=False)


def test_the_two_files_are_one_notebook() -> None:
    notebook, source = jupytext.read(NOTEBOOK), jupytext.read(SOURCE)
    compare(notebook, source)
    source.cells[-1].source += "\nprint()"
    with pytest.raises(NotebookDifference):
        compare(notebook, source)


def test_the_stored_outputs_are_of_one_whole_run() -> None:
    notebook = jupytext.read(NOTEBOOK)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert {output.output_type for output in outputs(notebook)} <= {
        "display_data",
        "execute_result",
        "stream",
    }
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))
    assert pictures(notebook) == 5
    assert NOTEBOOK.stat().st_size < 400_000


def test_the_files_name_no_place_on_a_machine() -> None:
    notebook = jupytext.read(NOTEBOOK)
    texts = [printed(notebook), *(cell.source for cell in notebook.cells), repr(notebook.metadata)]
    assert not any(PLACE.search(text) for text in (*texts, SOURCE.read_text()))
    for found in ("in /home/someone/runs", "Path('/data/run')", '"/opt/x.y"', "C:\\runs"):
        assert PLACE.search(found), found


@pytest.mark.slow
@pytest.mark.parametrize("run", ["trained_unet", "labelled"])
def test_it_runs_from_model_to_pictures(
    run: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own; that no cell raised is what `execute` itself sees to."""
    found = request.getfixturevalue(run)
    monkeypatch.setenv("DDPM_RUN", str(found[1] if run == "trained_unet" else found))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.setenv("MPLBACKEND", "agg")  # as a user may have it; the notebook knows better
    notebook = jupytext.read(SOURCE)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(SOURCE.parent)}},
    ).execute()
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert pictures(notebook) == 5
    assert "same seed, same images:    True\n" in printed(notebook)
    assert "another seed, same images: False\n" in printed(notebook)
