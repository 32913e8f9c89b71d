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


def imports(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
        assert not roots & FORBIDDEN[package], path
        if package == "launch":
            inner = {name for name in imports(path) if name.startswith("experiments")}
            assert all(name.startswith("experiments.configs") for name in inner), path


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
