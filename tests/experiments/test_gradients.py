"""Clipping and accumulation are what their formulas say, on however many devices."""

import functools
import os
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import devices
from experiments.optimizers import (
    CLIPS,
    Gradient,
    accumulated,
    clip_global,
    clip_none,
    clip_per_core,
)
from tests.started import run

PARAMS = {"w": jnp.array([0.5, -2.0, 3.0])}
EXAMPLES = jax.random.normal(jax.random.key(0), (16, 3))


def objective(params, examples, key):
    losses = jnp.square(examples @ params["w"] - 1.0)
    return losses.mean(), losses


def gradient(clip, mesh, params=PARAMS, examples=EXAMPLES, num_parts=1):
    differentiated = accumulated(jax.value_and_grad(objective, has_aux=True), num_parts)
    return jax.jit(lambda p, e: clip(mesh, differentiated, p, e, jax.random.key(1)))(
        params, examples
    )


def mesh_of(count: int) -> jax.sharding.Mesh:
    return devices.make_mesh(jax.devices()[:count])


def plain(examples):
    return jax.grad(lambda p: objective(p, examples, None)[0])(PARAMS)["w"]


def test_global_clipping_keeps_the_direction_and_limits_the_norm() -> None:
    expected = plain(EXAMPLES)
    norm = float(jnp.linalg.norm(expected))
    loose = gradient(clip_global(max_norm=2 * norm), mesh_of(1))
    np.testing.assert_allclose(loose.value["w"], expected, rtol=1e-5)
    tight = gradient(clip_global(max_norm=0.5), mesh_of(1))
    np.testing.assert_allclose(tight.value["w"], expected * 0.5 / norm, rtol=1e-5)
    assert float(tight.norm) == pytest.approx(norm, rel=1e-5)
    assert (float(loose.clipped_share), float(tight.clipped_share)) == (0, 1)
    np.testing.assert_allclose(tight.details, objective(PARAMS, EXAMPLES, None)[1], rtol=1e-5)


@pytest.mark.parametrize("clip", [clip_none(), clip_global(np.inf), clip_per_core(np.inf, 4)])
def test_without_a_limit_the_gradient_is_that_of_the_batch(clip) -> None:
    """Which the norm is still told of."""
    expected = plain(EXAMPLES)
    result = gradient(clip, mesh_of(1))
    np.testing.assert_allclose(result.value["w"], expected, rtol=1e-5)
    assert float(result.norm) >= float(jnp.linalg.norm(expected)) * (1 - 1e-5)
    assert float(result.clipped_share) == 0


@pytest.mark.parametrize("clip", CLIPS)
def test_a_gradient_of_nothing_stays_nothing(clip: str) -> None:
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    result = gradient(CLIPS[clip](), mesh_of(1), nothing, jnp.zeros_like(EXAMPLES))
    assert not result.value["w"].any() and float(result.clipped_share) == 0


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_per_core_clipping_clips_every_group_on_any_number_of_devices(count: int) -> None:
    groups = [plain(EXAMPLES[i : i + 4]) for i in range(0, 16, 4)]
    norms = [float(jnp.linalg.norm(group)) for group in groups]
    limit = float(np.mean(sorted(norms)[:2]))
    expected = sum(g * min(1, limit / n) for g, n in zip(groups, norms, strict=True)) / 4
    result = gradient(clip_per_core(max_norm=limit, num_cores=4), mesh_of(count))
    np.testing.assert_allclose(result.value["w"], expected, rtol=1e-5)
    assert float(result.norm) == pytest.approx(np.mean(norms), rel=1e-5)
    assert float(result.clipped_share) == 0.75
    np.testing.assert_allclose(result.details, objective(PARAMS, EXAMPLES, None)[1], rtol=1e-5)
    # Without a limit the two kinds agree; with one they do not.
    free = gradient(clip_per_core(max_norm=1e9, num_cores=4), mesh_of(count)).value["w"]
    np.testing.assert_allclose(free, plain(EXAMPLES), rtol=1e-5)
    whole = gradient(clip_global(max_norm=limit), mesh_of(1)).value["w"]
    assert float(jnp.abs(result.value["w"] - whole).max()) > 1e-3


@pytest.mark.parametrize("cores", [5, 32])
def test_a_batch_that_cannot_be_cut_is_refused(cores: int) -> None:
    with pytest.raises(ValueError, match=f"batch of 16 into num_cores = {cores} equal groups"):
        gradient(clip_per_core(num_cores=cores), mesh_of(1))


@pytest.mark.parametrize(("cores", "count"), [(4, 3), (2, 5), (8, 6)])
def test_devices_that_do_not_fit_the_groups_are_refused(cores: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"num_cores = {cores} groups for {count} devices: one"):
        gradient(clip_per_core(num_cores=cores), mesh_of(count))


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("clip", [clip_global(0.5), clip_per_core(0.5, 2)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_of_a_batch_add_up_to_its_gradient(clip, num_parts: int, count: int) -> None:
    """What is clipped is the sum, and what is known of every example keeps its order."""
    whole = gradient(clip, mesh_of(1))
    parts = gradient(clip, mesh_of(count), num_parts=num_parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, whole)
    assert 0 < float(whole.clipped_share) <= 1 and len(set(whole.details.tolist())) == 16


@pytest.mark.parametrize(
    ("clip", "num_parts", "size"), [(clip_none(), 3, 16), (clip_per_core(1.0, 4), 8, 4)]
)
def test_a_batch_that_has_no_such_parts_is_refused(clip, num_parts: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"steps = {num_parts} does not divide the {size} exam"):
        gradient(clip, mesh_of(1), num_parts=num_parts)


# --- A network with dropout ---


class Network(nn.Module):
    """The least that has dropout and more activations than parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.swish(nn.Conv(16, (3, 3))(x))
        x = nn.swish(nn.Conv(16, (3, 3))(nn.Dropout(0.3, deterministic=not train)(x)))
        return nn.Conv(1, (3, 3))(x)


NETWORK = Network()
BATCH, LIMIT, DROPOUT = 32, 2000.0, jax.random.key(3)


def images() -> jax.Array:
    """f32[BATCH, 8, 8, 1] that get larger, so that not every group is clipped."""
    x = jax.random.normal(jax.random.key(4), (BATCH, 8, 8, 1))
    return x * jnp.linspace(0.2, 4, BATCH)[:, None, None, None]


@functools.cache
def network_params():
    params = jax.jit(lambda: NETWORK.init(jax.random.key(5), images()[:1]))()["params"]
    return jax.tree.map(lambda x: x + 0.05, params)


def network_objective(params, examples, key):
    out = NETWORK.apply({"params": params}, examples, train=True, rngs={"dropout": key})
    losses = jnp.mean(jnp.square(out - examples), axis=(1, 2, 3))
    return losses.mean(), losses


network_gradient = jax.value_and_grad(network_objective, has_aux=True)


def on_devices(count: int, cores: int) -> Gradient:
    """The clipped gradient of the images, of which every device has its part."""
    mesh = mesh_of(count)
    everywhere = devices.replicated(mesh)

    def compute(params, examples):
        clip = clip_per_core(LIMIT, num_cores=cores)
        return clip(mesh, network_gradient, params, examples, DROPOUT)

    shardings = (everywhere, devices.sharded(mesh))
    compiled = jax.jit(compute, in_shardings=shardings, out_shardings=everywhere)
    return jax.device_get(compiled(network_params(), images()))


@functools.cache
def by_the_formula(cores: int) -> Gradient:
    """Group by group, with dropout of its own in each."""
    params, found = network_params(), []
    compute = jax.jit(network_gradient)
    for i, group in enumerate(jnp.split(images(), cores)):
        (_, losses), grads = compute(params, group, jax.random.fold_in(DROPOUT, i))
        norm = optax.tree.norm(grads)
        scale = min(1.0, LIMIT / float(norm))
        scaled = jax.tree.map(lambda g, scale=scale: g * scale, grads)
        found.append((scaled, losses, norm, scale < 1))
    values, losses, norms, clipped = zip(*found, strict=True)
    mean = jax.tree.map(lambda *g: sum(g) / cores, *values)
    assert 0 < np.mean(clipped) < 1
    return Gradient(mean, np.concatenate(losses), np.mean(norms), np.mean(clipped))


def assert_same(actual: list[np.ndarray], expected: Gradient) -> None:
    for ours, theirs in zip(actual, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("count", "cores"), [(1, 8), (2, 8), (8, 8), (8, 4)])
def test_a_group_is_the_same_on_part_of_a_device_and_on_several(count: int, cores: int) -> None:
    assert_same(jax.tree.leaves(on_devices(count, cores)), by_the_formula(cores))


@pytest.mark.slow
def test_sixteen_devices_clip_as_the_eight_cores_did(tmp_path: pathlib.Path) -> None:
    program = f"""
import jax, numpy
jax.config.update("jax_num_cpu_devices", 16)
from tests.experiments.test_gradients import on_devices
numpy.savez({str(tmp_path / "found.npz")!r}, *jax.tree.leaves(on_devices(16, 8)))
"""
    run([sys.executable, "-c", program], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    with np.load(tmp_path / "found.npz", allow_pickle=False) as stored:
        assert_same([stored[f"arr_{i}"] for i in range(len(stored.files))], by_the_formula(8))


def test_devices_that_share_a_group_share_its_work() -> None:
    """And do not each compute all of it."""

    def work(count: int) -> float:
        mesh = mesh_of(count)
        clip = clip_per_core(num_cores=1)
        compiled = jax.jit(
            lambda p, e: clip(mesh, network_gradient, p, e, DROPOUT),
            in_shardings=(devices.replicated(mesh), devices.sharded(mesh)),
        )
        analysis = compiled.lower(network_params(), images()).compile().cost_analysis()
        return analysis["flops"]

    assert work(8) < 0.3 * work(1)


def test_parts_need_the_memory_of_one_part_and_have_dropout_of_their_own() -> None:
    def compiled(num_parts: int):
        summed = accumulated(network_gradient, num_parts)
        return jax.jit(lambda p, e: summed(p, e, DROPOUT)).lower(network_params(), images())

    whole, parts = (compiled(n).compile() for n in (1, 8))
    memory = [x.memory_analysis().temp_size_in_bytes for x in (whole, parts)]
    assert memory[1] < 0.4 * memory[0]
    same = jnp.broadcast_to(images()[:1], images().shape)
    first, second = parts(network_params(), same)[0][1][:2]
    assert float(first) != float(second)
