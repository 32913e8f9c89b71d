"""The flag for fast convolutions on CPU: added where it is understood, never over the user's."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments.platform import FLAG, VALUE, set_cpu_flags

BOTH = f"..{FLAG.removeprefix('--')}\0{VALUE}\0..".encode()


def library(folder: pathlib.Path, content: bytes) -> pathlib.Path:
    (folder / "empty.so").touch()
    (folder / "libjax_common.so").write_bytes(content)
    return folder


def test_flag_is_added_where_jaxlib_knows_it(tmp_path: pathlib.Path):
    environ: dict[str, str] = {}
    assert set_cpu_flags(environ, library(tmp_path, BOTH))
    assert environ == {"XLA_FLAGS": f"{FLAG}={VALUE}"}


def test_other_flags_of_the_user_stay(tmp_path: pathlib.Path):
    environ = {"XLA_FLAGS": "--xla_dump_to=here"}
    assert set_cpu_flags(environ, library(tmp_path, BOTH))
    assert environ["XLA_FLAGS"] == f"--xla_dump_to=here {FLAG}={VALUE}"


def test_flag_of_the_user_stays(tmp_path: pathlib.Path):
    environ = {"XLA_FLAGS": f"{FLAG}= --xla_dump_to=here"}
    assert not set_cpu_flags(environ, library(tmp_path, BOTH))
    assert environ == {"XLA_FLAGS": f"{FLAG}= --xla_dump_to=here"}


@pytest.mark.parametrize("word", [FLAG.removeprefix("--"), VALUE])
def test_flag_is_left_out_where_jaxlib_does_not_know_it(tmp_path: pathlib.Path, word: str):
    environ: dict[str, str] = {}
    assert not set_cpu_flags(environ, library(tmp_path, BOTH.replace(word.encode(), b"other")))
    assert environ == {}


def test_jax_starts_with_the_flag_and_uses_it():
    program = """
import jax, jax.numpy as jnp
from experiments.platform import set_cpu_flags
added = set_cpu_flags()
x = jnp.ones((64, 64))
text = jax.jit(jnp.dot).lower(x, x).compile().as_text()
print(added, "ynn" in text)
"""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environ.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("False"):
        pytest.skip("this jaxlib does not know the flag")
    assert done.stdout.split() == ["True", "True"]
