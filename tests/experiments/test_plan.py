"""The plan of a run says what the run then needs."""

import pathlib
import re
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, plan
from experiments.build import build
from experiments.state import fresh_state, init_state, state_layout
from tests.experiments.test_fsdp import bytes_here

Make = Callable[[], ConfigDict]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SECONDS", 0.0)


def lines(text: str) -> dict[str, str]:
    """What was said, by the word that begins it; the last of several."""
    joined = re.sub(r"\n {10}", " ", text)
    found: dict[str, str] = {}
    for line in joined.splitlines():
        name, _, rest = line.partition(" ")
        found.setdefault(name, "")
        found[name] += rest.strip() + "\n"
    return found


def test_a_plan_says_memory_work_and_time(
    tiny: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny()
    config.train.num_steps, config.train.keep_every = 8_000, 4_000
    plan.plan(build(config), tmp_path / "none")
    said = lines(capsys.readouterr().out)
    seconds = float(re.search(r"([\d.,]+) s a step", said["speed"])[1])
    rate = float(re.search(r"([\d.,]+) images/s", said["speed"])[1].replace(",", ""))
    assert config.train.batch_size / rate == pytest.approx(seconds, abs=6e-4)  # told to 1 ms
    assert "8,000 steps of 16" in said["training"]
    assert "at most 5 at once" in said["disk"]  # 2 and the one being written, 2 for good
    assert "it fits" in said["memory"] and "it fits" in said["sampling"] and "bound" in said
    assert not (tmp_path / "none").exists()


def test_steps_that_are_done_are_not_planned_again(
    trained: tuple[ConfigDict, pathlib.Path], capsys: pytest.CaptureFixture
) -> None:
    config, workdir = trained
    longer = config.copy_and_resolve_references()
    longer.train.num_steps = 100
    plan.plan(build(longer), workdir)
    said = lines(capsys.readouterr().out)
    assert "8 of 100 steps" in said["done"] and "92 steps of 16" in said["training"]


@pytest.mark.parametrize("fsdp", [1, 8])
def test_the_bytes_of_the_state_are_those_that_it_takes(
    tiny: Make, all_devices: None, fsdp: int
) -> None:
    config = tiny()
    config.model.channels = 64  # some arrays are cut, and some are not
    experiment, mesh = build(config), devices.make_mesh(fsdp=fsdp)
    abstract = jax.eval_shape(lambda: init_state(experiment))
    planned = plan.bytes_on_a_device(abstract, state_layout(experiment, mesh))
    assert planned == bytes_here(fresh_state(experiment, mesh))


def test_the_work_of_dense_layers_is_six_operations_a_weight_and_an_example(
    tiny_vae: Make,
) -> None:
    """A product and a sum forward, and twice that backward, but not for the first layer's input."""
    config = tiny_vae()
    config.model = ConfigDict(
        dict(name="mlp_vae", hidden_sizes=(512, 512), latent_size=16, dropout=0.0, dtype="float32")
    )
    experiment = build(config)
    batch, found = plan.example_batch(experiment)
    assert found and batch["image"].shape == (16, 8, 8, 1)
    state = jax.eval_shape(lambda: init_state(experiment))
    weights = [x for x in jax.tree.leaves(state.params) if x.ndim == 2]
    products = 16 * (6 * sum(x.size for x in weights) - 2 * 64 * 512)
    assert plan.step_flops(experiment, state, batch) == pytest.approx(products, rel=0.3)
    more = {name: np.concatenate([x, x]) for name, x in batch.items()}
    twice = plan.step_flops(experiment, state, more) - plan.step_flops(experiment, state, batch)
    assert twice == pytest.approx(products, rel=0.05)  # what does not grow with the batch is Adam's


def test_parts_of_a_batch_and_groups_of_the_clip_count_in_full(tiny: Make) -> None:
    counts = []
    for parts, clip in ((1, "global"), (4, "global"), (1, "per_core")):
        config = tiny()
        config.train.accumulate_steps, config.clip = parts, ConfigDict(dict(name=clip))
        experiment = build(config)
        batch, _ = plan.example_batch(experiment)
        state = jax.eval_shape(lambda experiment=experiment: init_state(experiment))
        counts.append(plan.step_flops(experiment, state, batch))
    assert counts[0] == counts[1] == counts[2] > 1e5


def test_what_does_not_fit_is_said_and_not_run(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda: 1000)
    monkeypatch.setattr(plan, "seconds_of", lambda call: pytest.fail("was run"))
    plan.plan(build(tiny()), None)
    said = lines(capsys.readouterr().out)
    for name in ("memory", "sampling", "bound"):
        assert "it does NOT fit" in said[name]
    assert "accumulate_steps" in said["advice"] and "not measured" in said["speed"]


def test_a_plan_needs_no_data(
    tiny: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny()
    config.data = ConfigDict(dict(name="cifar10", data_dir=str(tmp_path)))
    config.evaluate.batch_size = 8
    plan.plan(build(config), None)
    said = lines(capsys.readouterr().out)
    assert "random images" in said["data"] and "images/s" in said["speed"]
