"""Checksums: what they are of, what they notice, and that no layout changes them."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.workdir.checkpoint import BASE, crc32s, sums

DTYPES = ["float32", "bfloat16", "int32", "uint8", "bool"]


def array(dtype: str, shape: tuple[int, ...] = (3, 5, 7)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 2, shape), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_crc_is_that_of_the_leafs_bytes(dtype: str) -> None:
    tree = {"w": array(dtype), "n": [jnp.asarray(3, jnp.int32)]}
    expected = {
        "['w']": zlib.crc32(np.asarray(tree["w"]).tobytes()),
        "['n'][0]": zlib.crc32(b"\3\0\0\0"),
    }
    assert crc32s(tree) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_is_the_polynomial_of_the_elements_bits(dtype: str) -> None:
    leaf = array(dtype)
    bits = np.asarray(leaf).view(f"u{leaf.dtype.itemsize}").ravel()
    total = sum(int(b) * pow(BASE, i, 2**64) for i, b in enumerate(bits)) % 2**64
    assert sums({"w": leaf}) == sums({"w": np.asarray(leaf)}) == {"['w']": f"{total:016x}"}


def test_scalars_and_empty_arrays_have_sums() -> None:
    found = sums([jnp.asarray(3, jnp.int32), jnp.zeros((4, 0))])
    assert found == {"[0]": f"{3:016x}", "[1]": f"{0:016x}"}


@pytest.mark.parametrize(
    "spec", [(), ("a",), (None, "a"), (None, "b", "a"), (("a", "b"),), (None, ("b", "a"), None)]
)
def test_no_layout_changes_a_sum(spec: tuple) -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    leaf = jax.random.normal(jax.random.key(0), (8, 16, 12))
    placed = jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))
    assert sums([placed]) == sums([leaf])


def test_every_flipped_bit_and_every_exchange_of_two_elements_is_noticed() -> None:
    leaf = np.random.default_rng(1).integers(0, 2**32, (4, 8), dtype=np.uint32)
    seen = {sums([leaf])["[0]"]}
    for element in range(leaf.size):
        for bit in range(32):
            other = leaf.copy()
            other.ravel()[element] ^= np.uint32(1 << bit)
            seen.add(sums([other])["[0]"])
    for i in range(leaf.size):
        for j in range(i):
            other = leaf.copy()
            other.ravel()[[i, j]] = other.ravel()[[j, i]]
            seen.add(sums([other])["[0]"])
    assert len(seen) == 1 + 32 * 32 + 32 * 31 // 2
