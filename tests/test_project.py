"""What the project says of itself agrees: extras, Pythons, citation, hooks."""

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
SETUP = (ROOT / "setup.py").read_text()
EXTRAS = set(re.findall(r'^        "(\w+)": (?:\[|\w)', SETUP, re.MULTILINE))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_every_extra_that_is_named_exists(name: str) -> None:
    named = re.findall(r"\.\[([\w,]+)\]", (ROOT / name).read_text())
    assert named and {extra for words in named for extra in words.split(",")} <= EXTRAS
    assert {"cuda12", "cuda13", "tpu", "dev", "parity", "wandb"} <= EXTRAS


def test_the_workflow_runs_the_pythons_that_are_claimed() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["tests"]
    (minors,) = re.findall(r"Python :: 3.\{minor\}\" for minor in \(([\d, ]+)\)", SETUP)
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in minors.split(", ")]
    assert job["steps"][-1]["run"] == ".ci/run" and (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_hooks_are_what_ci_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    run = (ROOT / ".ci" / "run").read_text()
    assert [hook["entry"] for hook in hooks] == ["ruff check", "ruff format", "mypy"]
    assert all(f"bin/{hook['entry']}" in run for hook in hooks)


def test_the_citation_names_the_paper_and_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["url"].endswith("2006.11239")
    assert f'version="{citation["version"]}"' in SETUP and citation["cff-version"] == "1.2.0"
