"""launch -> experiments -> diffusion, and never back; diffusion knows no program."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("diffusion", "experiments", "launch", "benchmarks")
FORBIDDEN = {
    "diffusion": {
        "experiments",
        "launch",
        "absl",
        "ml_collections",
        "tensorflow_datasets",
        "grain",
    },
    "experiments": {"launch", "tensorflow", "torch"},
    "launch": {"diffusion"},
}
# Imported where a user's file asks for it, and never by importing the module.
ON_DEMAND = {"experiments/weights/sources.py": {"tensorflow"}}


def imports(path: pathlib.Path, on_demand: bool = True) -> set[str]:
    """What a file imports, with or without what only its functions import."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree) if on_demand else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_flow_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        roots = {name.split(".")[0] for name in imports(path)}
        excepted = ON_DEMAND.get(path.relative_to(ROOT).as_posix(), set())
        assert not roots & FORBIDDEN[package] - excepted, path
        at_once = {name.split(".")[0] for name in imports(path, on_demand=False)}
        assert excepted <= roots and not at_once & excepted, path
        if package == "launch":
            inner = {name for name in imports(path) if name.startswith("experiments")}
            allowed = ("experiments.configs", "experiments.command_line")
            assert all(name.startswith(allowed) for name in inner), path


def test_files_stay_short() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_nothing_uses_what_jax_is_about_to_lose() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            for word in (
                "jax.tree_map",
                "jax.experimental.shard_map",
                "jax._src",
                "optax.global_norm",
            ):
                assert word not in text, (path, word)
