"""Devices that share one copy of the training state compute what devices that each have it do."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from experiments import devices, hooks, train
from experiments.build import build
from experiments.state import fresh_state, init_state
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.outcome import Outcome
from tests.experiments.processes import in_processes
from tests.experiments.test_train import final_state, host_batches
from tests.started import run

Make = Callable[[], ConfigDict]
pytestmark = pytest.mark.usefixtures("all_devices")


@pytest.fixture
def wide(tiny: Make) -> ConfigDict:
    """A network whose arrays are large enough to be cut."""
    config = tiny()
    config.model.channels = 512
    config.model.dropout = 0.0
    return config


@pytest.fixture
def wide_unet(tiny_unet: Make) -> ConfigDict:
    config = tiny_unet()
    config.model.channels = 32
    config.model.dropout = 0.0
    return config


def bytes_here(tree: Any) -> int:
    """Bytes of the arrays on the first device."""
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == first
    )


def test_an_array_is_cut_along_its_longest_axis_that_the_devices_can_share() -> None:
    place = devices.over_fsdp(devices.make_mesh(fsdp=8))
    assert place((3, 3, 64, 128)).spec == PartitionSpec(None, None, None, "fsdp")
    assert place((3, 3, 128, 64)).spec == PartitionSpec(None, None, "fsdp")
    assert place((64, 64)).spec == PartitionSpec(None, "fsdp")
    assert place((4095, 64)).spec == PartitionSpec(None, "fsdp")
    assert place((100, 3, 999)).spec == PartitionSpec()  # nothing that 8 can share
    assert place((2048,)).spec == place(()).spec == PartitionSpec()  # too few to be worth it
    assert place((4096,)).spec == PartitionSpec("fsdp")
    assert devices.over_fsdp(devices.make_mesh())((512, 512)).spec == PartitionSpec()


@pytest.mark.parametrize(
    "options", [dict(fsdp=3), dict(data=3), dict(data=4, fsdp=4), dict(data=3, fsdp=0)]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"config.mesh = .* does not fit 8 device\(s\)"):
        devices.make_mesh(**options)
    with pytest.raises(ValueError, match="does not fit"):
        devices.make_mesh(data=0, fsdp=0)


def test_neighbours_share_a_copy() -> None:
    mesh = devices.make_mesh(fsdp=4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
    assert [d.id for d in mesh.devices[0]] == [0, 1, 2, 3]
    assert dict(devices.make_mesh(data=2, fsdp=0).shape) == {"data": 2, "fsdp": 4}


def after_steps(config: ConfigDict, fsdp: int, count: int = 8) -> tuple[Any, Any, Any]:
    """The state after four steps, the metrics of each call, and what the compiler says it needs."""
    experiment = build(config)
    mesh = devices.make_mesh(jax.devices()[:count], fsdp=fsdp)
    state, metrics = fresh_state(experiment, mesh), []
    call = None
    for batch in host_batches(config, 2):
        placed = devices.put(batch, devices.sharded(mesh, axis=1))
        call = call or train.make_train_call(experiment, mesh).lower(state, placed).compile()
        state, sums = call(state, placed)
        metrics.append(jax.device_get(sums))
    return state, metrics, call.memory_analysis()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shared_by", "clip"),
    [
        ("wide", (2, 4, 8), dict(name="global")),
        ("wide_unet", (8,), dict(name="per_core", max_norm=0.5)),
    ],
)
def test_fsdp_trains_as_data_parallel_does_with_a_part_of_the_memory(
    network: str,
    shared_by: tuple[int, ...],
    clip: dict,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture,
) -> None:
    """Parameters to the rounding of sums in another order; arguments on a device fall as 1/n."""
    wide = request.getfixturevalue(network)
    wide.clip = ConfigDict(clip)
    wide.optimizer.epsilon_hat = False
    plain, first, needs = after_steps(wide, 1)
    total, lines = bytes_here(plain), []
    for fsdp in shared_by:
        shared, second, needs_less = after_steps(wide, fsdp)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(shared), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=3e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), first, second)
        small = bytes_here([x for x in jax.tree.leaves(shared) if x.sharding.is_fully_replicated])
        assert small < 0.12 * total
        assert bytes_here(shared) <= small + (total - small) / fsdp + 1
        less = needs.argument_size_in_bytes - needs_less.argument_size_in_bytes
        assert less == pytest.approx(total - bytes_here(shared), abs=1024)
        lines.append(f"fsdp = {fsdp}: {bytes_here(shared):,} of {total:,} bytes on a device")
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@pytest.mark.slow
def test_a_checkpoint_of_either_goes_on_as_the_other(
    wide: ConfigDict, tmp_path: pathlib.Path
) -> None:
    wide.train.keep_checkpoints = 9
    finals = {}
    for name, meshes in {"plain": (1, 1), "to": (1, 4), "fro": (8, 1), "shared": (2, 8)}.items():
        for steps, fsdp in zip((4, 8), meshes, strict=True):
            config = wide.copy_and_resolve_references()
            config.train.num_steps, config.mesh.fsdp = steps, fsdp
            config.train.preview_every = 4 * (name == "shared")
            config.train.preview_images = 4
            done = hooks.train_with_hooks(build(config), tmp_path / name)
            assert done is Outcome.FINISHED
        finals[name] = final_state(tmp_path / name, config)
        with Checkpoints(tmp_path / name) as checkpoints:
            assert checkpoints.steps() == [4, 8]
    for name in ("to", "fro", "shared"):
        for a, b in zip(
            jax.tree.leaves(finals["plain"]), jax.tree.leaves(finals[name]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_what_is_restored_in_another_layout_is_the_same_bit_for_bit(
    wide: ConfigDict, tmp_path: pathlib.Path
) -> None:
    experiment = build(wide)
    made = fresh_state(experiment, devices.make_mesh(fsdp=8))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, made.params, made.ema_params, {})
        checkpoints.wait()
        for fsdp in (1, 2, 4):
            place = devices.over_fsdp(devices.make_mesh(fsdp=fsdp))
            abstract = jax.tree.map(
                lambda x, place=place: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=place(x.shape)
                ),
                jax.eval_shape(lambda: init_state(experiment).params),
            )
            found = checkpoints.restore(1, "state", abstract)
            jax.tree.map(np.testing.assert_array_equal, found, made.params)
            assert all(
                x.sharding.is_equivalent_to(place(x.shape), x.ndim) for x in jax.tree.leaves(found)
            )


def test_numbers_that_are_not_finite_are_found_in_every_part(
    wide: ConfigDict, tmp_path: pathlib.Path
) -> None:
    mesh = devices.make_mesh(fsdp=8)
    place = devices.over_fsdp(mesh)
    tree = {"w": jax.device_put(jnp.zeros((64, 64)).at[63, 63].set(jnp.nan), place((64, 64)))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, tree, {})
        checkpoints.wait()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )
        with pytest.raises(RuntimeError, match="not finite"):
            checkpoints.restore(1, "state", abstract)


@pytest.mark.slow
def test_a_run_goes_on_in_two_four_and_one_processes(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def command(workdir: str, steps: int, *more: str) -> list[str]:
        return [
            *("-m", "experiments.main", "--config=digits:eps_simple", f"--workdir={workdir}"),
            *(f"--config.data.data_dir={data_dir}", "--config.model.channels=32"),
            *("--config.model.channel_multipliers=(1,)", "--config.model.attention_resolutions=()"),
            *("--config.train.batch_size=16", "--config.train.checkpoint_every=4"),
            *("--config.train.preview_every=4", "--config.train.preview_num_steps=2"),
            *("--config.train.log_every=2", "--config.train.steps_per_call=2"),
            *(f"--config.train.num_steps={steps}", "--config.train.finish_with=()", *more),
        ]

    alone, shared = str(tmp_path / "alone"), str(tmp_path / "shared")
    in_processes(2, *command(shared, 4, "--config.mesh.fsdp=2"))  # that share a copy
    in_processes(4, *command(shared, 8, "--config.mesh.fsdp=2"))  # two by two
    for arguments in (command(shared, 12), command(alone, 12)):
        run([sys.executable, *arguments])
    losses = []
    for workdir in (shared, alone):
        lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
        losses.append([float(x.split('"loss": ')[1].split(",")[0]) for x in lines.splitlines()])
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=2e-3)
