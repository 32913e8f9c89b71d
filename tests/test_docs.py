"""What the documents say exists: link targets, the names they link to, commands and configs."""

import ast
import functools
import importlib.util
import itertools
import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.started import ROOT, run

THEORY = ROOT / "docs" / "theory.md"
EQUATIONS = {"2", "4", "5", "6", "7", "8", "11", "12", "13", "14", "15"}

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\[\]]+)\]\(([^()\s]+)\)")
NAME = re.compile(r"test_\w+|[A-Za-z_]\w*(\.\w+)+")
COMMAND = re.compile(r"\bpython3? -m ([\w.]+)")
CONFIG = re.compile(r"\bconfig=([\w./-]+\.py)\b", re.IGNORECASE)
TAG = re.compile(r"\((IDDPM |VDM )?Eqs?\. ([\d, ]+)\)")


def documents() -> list[pathlib.Path]:
    """Every Markdown file that git tracks; outside a checkout, those at the usual places."""
    listed = run(["git", "ls-files", "*.md"], code=None)
    found = [ROOT / name for name in listed.stdout.splitlines()]
    found = found or [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    return [path for path in found if path.is_file()]


def config_files() -> list[pathlib.Path]:
    return sorted((ROOT / "experiments" / "configs").glob("*.py"))


def label(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_document = pytest.mark.parametrize("path", documents(), ids=label)


# --- Names that a Python file defines ---


def bound_names(node: ast.stmt) -> Iterator[str]:
    """What one statement defines: a function, a class and its members, or variables."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.ClassDef):
        yield node.name
        for inner in node.body:
            yield from (f"{node.name}.{name}" for name in bound_names(inner))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [inner for target in targets for inner in ast.walk(target)]
        yield from (name.id for name in names if isinstance(name, ast.Name))


@functools.cache
def linkable(path: pathlib.Path) -> frozenset[str]:
    """Every way to name what `path` defines: f, module.f, package.module.f, and the module."""
    module = path.relative_to(ROOT).with_suffix("").parts
    prefixes = [".".join(module[i:]) for i in range(len(module))]
    names = {name for node in ast.parse(path.read_text()).body for name in bound_names(node)}
    return frozenset(names | {f"{prefix}.{n}" for prefix in prefixes for n in names} | {*prefixes})


# --- Links ---


def links(text: str) -> list[tuple[str, str]]:
    """(text, target) of every relative link outside of code blocks."""
    found = [(name.strip("`"), target) for name, target in LINK.findall(FENCE.sub("", text))]
    return [(name, target) for name, target in found if not re.match(r"\w+:|#", target)]


def names_something(name: str, path: pathlib.Path) -> bool:
    """Whether a link's text is the name of something that a Python file should define."""
    return path.suffix == ".py" and not name.endswith(".py") and bool(NAME.fullmatch(name))


def broken_links(text: str, folder: pathlib.Path) -> list[str]:
    """What is wrong with the links of a document that lies in `folder`."""
    wrong = []
    for name, target in links(text):
        path = (folder / target.split("#")[0]).resolve()
        if not path.exists():
            wrong.append(f"[{name}]({target}): there is no {target}")
        elif names_something(name, path) and name not in linkable(path):
            wrong.append(f"[{name}]({target}): {path.name} defines no {name}")
    return wrong


@every_document
def test_every_link_leads_to_a_file_that_defines_its_name(path: pathlib.Path) -> None:
    assert broken_links(path.read_text(), path.parent) == []


@every_document
def test_a_test_that_is_named_without_a_link_is_there(path: pathlib.Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", path.read_text()))
    files = (ROOT / "tests").rglob("*.py") if named else ()
    there = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert not named - there - {file.stem for file in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize(
    "link",
    [
        "[forward.q_posteriors](../diffusion/forward.py)",
        "[reverse.q_posterior](../diffusion/forward.py)",
        "[Schedule.gamma](../diffusion/structs.py)",
        "[Terms.totals](../diffusion/likelihood.py)",
        "[`test_the_posterior`](../tests/diffusion/test_forward.py)",
        "[the forward process](../diffusion/forwards.py)",
        "[the paper](paper.md#results)",
    ],
)
def test_a_link_to_nothing_is_noticed(link: str) -> None:
    assert len(broken_links(f"See {link}.", THEORY.parent)) == 1


@pytest.mark.parametrize(
    "link",
    [
        "[diffusion.forward.q_posterior](../diffusion/forward.py)",
        "[Schedule.num_timesteps](../diffusion/structs.py)",
        "[likelihood.Terms.nats](../diffusion/likelihood.py)",
        "[losses.LOSSES](../diffusion/losses.py)",
        "[forward.py](../diffusion/forward.py)",
        "[the license](../LICENSE)",
        "[elsewhere](https://arxiv.org/abs/2006.11239)",
    ],
)
def test_functions_fields_methods_and_tables_can_be_linked(link: str) -> None:
    assert broken_links(f"See {link}.", THEORY.parent) == []


# --- Commands ---


def is_module(name: str) -> bool:
    """Whether `python -m name` finds a file: ours by its path, another's by its package."""
    name = name.rstrip(".")
    path = ROOT.joinpath(*name.split("."))
    if (ROOT / name.split(".")[0]).is_dir():
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    return name == "pip" or importlib.util.find_spec(name.split(".")[0]) is not None


def broken_commands(text: str) -> list[str]:
    modules = [f"python -m {name}" for name in COMMAND.findall(text) if not is_module(name)]
    return modules + [name for name in CONFIG.findall(text) if not (ROOT / name).is_file()]


def docstrings(path: pathlib.Path) -> str:
    nodes = ast.walk(ast.parse(path.read_text()))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return "\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds))


@every_document
def test_every_command_in_a_document_can_be_run(path: pathlib.Path) -> None:
    assert broken_commands("\n".join(FENCE.findall(path.read_text()))) == []


@pytest.mark.parametrize("path", config_files(), ids=label)
def test_every_command_in_a_config_can_be_run(path: pathlib.Path) -> None:
    assert broken_commands(docstrings(path)) == []


def test_a_command_that_cannot_be_run_is_noticed() -> None:
    good = "python -m experiments.main --config=experiments/configs/cifar10.py:mu_mse --workdir=x"
    assert broken_commands(good) == [] == broken_commands("python -m pip install -e .")
    assert broken_commands(good.replace("main", "mane")) == ["python -m experiments.mane"]
    assert broken_commands(good.replace("experiments.main", "experiment.main")) != []
    assert broken_commands(good.replace("cifar10", "cifar")) == ["experiments/configs/cifar.py"]
    assert broken_commands("CONFIG=experiments/configs/lsun.py") == ["experiments/configs/lsun.py"]
    fence = "words\n```sh\npython -m experiments.mane\n```\nwords"
    assert broken_commands("\n".join(FENCE.findall(fence))) == ["python -m experiments.mane"]


# --- Equations ---


def checked_equations(text: str) -> set[str]:
    """The paper's equations whose line links to a function of `diffusion` and to a test."""
    found = set()
    for paragraph in text.split("\n\n"):
        tag, targets = TAG.match(paragraph), links(paragraph)
        code = any("/diffusion/" in to and "/tests/" not in to for _, to in targets)
        if tag and code and any(name.startswith("test_") for name, _ in targets):
            found |= {(tag[1] or "") + number for number in tag[2].split(", ")}
    return found


def displayed_equations(text: str) -> set[str]:
    return set(re.findall(r"\\tag\{([^}]+)\}", text))


def test_every_numbered_equation_has_a_function_and_a_test() -> None:
    text = THEORY.read_text()
    assert displayed_equations(text) >= EQUATIONS
    assert displayed_equations(text) - checked_equations(text) == set()


def test_an_equation_without_its_links_is_noticed() -> None:
    code, test = "[forward.f](../diffusion/forward.py)", "[test_f](../tests/diffusion/test_f.py)"
    assert checked_equations(f"(Eqs. 2, 4) {code}, {test}.") == {"2", "4"}
    assert checked_equations(f"(IDDPM Eq. 15) {code}, {test}.") == {"IDDPM 15"}
    for text in (f"(Eq. 2) {code}.\n\n{test}", f"(Eq. 2) {test}.", f"{code}, {test}."):
        assert checked_equations(text) == set()


# --- The VAE's page ---

VAE = ROOT / "docs" / "vae.md"


def rows_below(text: str, heading: str) -> list[str]:
    """The lines of the first table below a heading, without its head."""
    lines = text.split(f"{heading}\n", 1)[1].splitlines()
    table = itertools.dropwhile(lambda line: not line.startswith("|"), lines)
    return list(itertools.takewhile(lambda line: line.startswith("|"), table))[2:]


def unchecked_rows(rows: list[str], *, code: bool) -> list[str]:
    """Rows of a table without a test, or, where that is asked for, without a function."""
    return [
        row
        for row in rows
        if not any(name.startswith("test_") for name, _ in links(row))
        or (code and not any("/tests/" not in to for _, to in links(row)))
    ]


@pytest.mark.parametrize(
    ("heading", "least", "code"),
    [("### What answers to what", 8, True), ("## 7. Errors that circulate", 5, False)],
)
def test_every_row_of_the_vaes_tables_has_its_links(heading: str, least: int, code: bool) -> None:
    rows = rows_below(VAE.read_text(), heading)
    assert len(rows) >= least
    assert unchecked_rows(rows, code=code) == []


def test_a_row_without_its_links_is_noticed() -> None:
    code, test = "[forward.f](../diffusion/forward.py)", "[test_f](../tests/diffusion/test_f.py)"
    text = (
        f"## T\n\n| a | b |\n|---|---|\n| x | {code} {test} |\n| y | {test} |\n| z | {code} |\n\n"
    )
    rows = rows_below(text, "## T")
    assert len(rows) == 3
    assert unchecked_rows(rows, code=True) == rows[1:]
    assert unchecked_rows(rows, code=False) == rows[2:]


def test_every_passage_of_the_vaes_page_has_a_function_and_a_test() -> None:
    """Paragraphs that begin with a name in parentheses, as the equations of theory.md do."""
    for paragraph in VAE.read_text().split("\n\n"):
        for line in paragraph.splitlines():
            if re.match(r"\([A-Z][^)]*\) Code:", line):
                targets = links(line)
                assert any("/tests/" not in to for _, to in targets), line
                assert any(name.startswith("test_") for name, _ in targets), line
