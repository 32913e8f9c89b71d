"""No file that the program is given can make it run what the file says."""

import ast

import pytest

from tests.test_imports import PACKAGES, ROOT

# Modules whose readers run their input; RESTRICTED alone derives from one of them.
RUNNERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RESTRICTED = "experiments/files/pickles.py"


def runners(source: str) -> list[str]:
    """The lines of a program that can unpickle a file without restriction."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        unsafe = any(name.split(".")[0] in RUNNERS for name in names)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            unsafe = called in ("torch.load", "pd.read_pickle", "pandas.read_pickle") or any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                for keyword in node.keywords
            )
        if unsafe:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads as harmless",
        "import dill, os",
        "from joblib.numpy_pickle import load",
        "def f(path):\n    import cloudpickle",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=choice)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "pandas.read_pickle(path)",
    ],
)
def test_what_unpickles_is_seen(line: str) -> None:
    assert runners(line)
    assert not runners("import json\nnp.load(path, allow_pickle=False)\njson.load(stream)")


def test_nothing_unpickles_without_restriction() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): runners(path.read_text()) for path in paths}
    assert {name for name, lines in found.items() if lines} == {RESTRICTED}
    assert found[RESTRICTED] == ["import pickle"]


def test_the_restricted_reader_itself_only_derives_from_pickle_s() -> None:
    """What it takes from the module: a class to derive from, which looks nothing up by itself."""
    tree = ast.parse((ROOT / RESTRICTED).read_text())
    used = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle.")
    }
    assert used == {"pickle._Unpickler", "pickle._Unpickler.dispatch", "pickle.BUILD"}
    (reader,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases
                 and ast.unparse(node.bases[0]) == "pickle._Unpickler")  # fmt: skip
    assert "find_class" in {node.name for node in reader.body if isinstance(node, ast.FunctionDef)}
