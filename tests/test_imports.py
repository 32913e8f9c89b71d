"""Layers: every room imports only rooms of lower layers, and each engine stays where it belongs."""

import ast
import functools
import pathlib
import sys

import pytest

from tests.started import ROOT, run

PACKAGES = ("diffusion", "experiments", "launch", "benchmarks")
# A room is a package, or a folder or file of experiments/. From the lowest layer to the highest.
LAYERS = tuple(
    frozenset(layer.split())
    for layer in (
        "diffusion",
        "files devices images console lookup optimizers",
        "peers",
        "data workdir",
        "methods features configs",
        "experiment command_line reports sample_files",
        "build",
        "drawing editing arguments",
        "state sample compare prepare",
        "fine_tuning",
        "train metrics weights picture_sets",
        "evaluate hooks api convert figures fid",
        "modes plan",
        "main check",
        "launch benchmarks",
    )
)
# What a room may import of all that lies below it, where that is less than everything.
ONLY = {
    "workdir": {"files", "devices", "console"},
    "launch": {"files", "console", "workdir", "configs", "command_line", "reports"},
}
# Programs of others that a package must not need.
FOREIGN = {
    "diffusion": {"absl", "ml_collections", "tensorflow_datasets", "grain"},
    "experiments": {"tensorflow", "torch"},
    "launch": {"jax", "flax", "tensorflow", "torch"},
    "benchmarks": set(),
}
# Imported where a user's file asks for it, and never by importing the module.
ON_DEMAND = {"experiments/weights/sources.py": {"tensorflow"}}
LARGEST = 31  # files behind the training loop


def files(package: str) -> list[pathlib.Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def imports(path: pathlib.Path, on_demand: bool = True) -> frozenset[str]:
    """The modules that a file imports, with or without what only its functions import."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree) if on_demand else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
    return frozenset(names)


def module_path(name: str) -> pathlib.Path | None:
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def room(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "experiments" else parts[0]


def rooms(path: pathlib.Path) -> set[str]:
    """Other rooms that a file imports."""
    found = {module_path(name) for name in imports(path)} - {None}
    return {room(other) for other in found if other is not None} - {room(path)}


def layer(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_imports_lower_layers_only(package: str) -> None:
    checked = [path for path in files(package) if path.name != "__init__.py"]
    assert checked
    for path in checked:
        for other in rooms(path):
            assert layer(other) < layer(room(path)), (path, other)
            assert other in ONLY.get(room(path), {other}), (path, other)


def test_a_room_is_in_one_layer_and_there() -> None:
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))
    there = {room(path) for package in PACKAGES for path in files(package)}
    assert there - {"__init__"} == set(names)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_needs_another_program(package: str) -> None:
    for path in files(package):
        roots = {name.split(".")[0] for name in imports(path)}
        excepted = ON_DEMAND.get(path.relative_to(ROOT).as_posix(), set())
        assert not roots & FOREIGN[package] - excepted, path
        at_once = {name.split(".")[0] for name in imports(path, on_demand=False)}
        assert excepted <= roots and not at_once & excepted, path


def closure(path: pathlib.Path) -> set[pathlib.Path]:
    """All files of the project that importing a file reads, itself included."""
    found, left = set(), [path]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [other for name in imports(path) if (other := module_path(name))]
    return found


def test_the_training_loop_needs_no_metric() -> None:
    """It is handed hooks; samplers it knows as part of its method alone."""
    behind = closure(ROOT / "experiments" / "train.py")
    forbidden = {"metrics", "features", "sample", "weights", "evaluate", "hooks", "reports"}
    forbidden |= {"build", "configs", "drawing"}
    assert not {room(path) for path in behind} & forbidden
    assert len(behind) <= LARGEST, sorted(path.relative_to(ROOT).as_posix() for path in behind)


@pytest.mark.parametrize("module", ["launch.plan", "launch.job", "experiments"])
def test_what_launches_needs_no_jax(module: str) -> None:
    code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    run([sys.executable, "-c", code])


def test_files_stay_short() -> None:
    for package in PACKAGES:
        for path in files(package):
            assert len(path.read_text().splitlines()) <= 400, path


def test_nothing_uses_what_jax_is_about_to_lose() -> None:
    for package in PACKAGES:
        for path in files(package):
            text = path.read_text()
            for word in (
                "jax.tree_map",
                "jax.experimental.shard_map",
                "jax._src",
                "optax.global_norm",
            ):
                assert word not in text, (path, word)
