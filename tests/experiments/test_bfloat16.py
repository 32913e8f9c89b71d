"""What bfloat16 may change of a trained model: less than the numbers that are reported of it."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, train
from experiments.build import build
from experiments.configs import digits
from experiments.experiment import Experiment
from experiments.metrics import bound
from experiments.state import load_ema
from experiments.workdir.outcome import Outcome

IMAGES = 100


def config(data_dir: pathlib.Path, ablation: str) -> ConfigDict:
    """A short training of a small network; blocks between conv_in and conv_out, with attention."""
    config = digits.get_config(ablation)
    config.data.data_dir = str(data_dir)
    config.schedule.beta_start = 1e-3
    config.model.channels, config.model.norm_groups = 16, 4
    config.model.dropout = 0.0
    config.optimizer.warmup_steps = 20
    config.ema_decay = 0.98
    config.train.num_steps = config.train.checkpoint_every = 300
    config.train.steps_per_call, config.train.batch_size = 50, 32
    config.train.preview_every = 0
    config.evaluate.batch_size = IMAGES
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("ablation", "limit"), [("eps_simple", 0.001), ("", 0.003)])
def test_the_bound_stays(
    ablation: str, limit: float, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The same parameters, noise and timesteps: only the arithmetic of the network differs."""
    model = build(config(data_dir, ablation))
    assert train.train(model, tmp_path) is Outcome.FINISHED
    mesh = devices.make_mesh(jax.devices()[:1])
    params = load_ema(model, tmp_path, mesh).params
    source = model.dataset.open("test")

    def bits(experiment: Experiment) -> np.ndarray:
        return bound.make_estimate(experiment, source, IMAGES, mesh, quiet=True)(params)

    half = config(data_dir, ablation)
    half.model.dtype = "bfloat16"
    float32, bfloat16 = bits(model), bits(build(half))
    assert float32.mean() < 4.0 and (float32 != bfloat16).all()
    assert abs((bfloat16 - float32).mean()) < limit


def test_what_x_t_and_the_output_pass_whole_is_float32(data_dir: pathlib.Path) -> None:
    """Every product of the network that is not inside a block, and the logits of attention."""
    half = config(data_dir, "eps_simple")
    half.model.dtype = "bfloat16"
    network = build(half).method.chain.network
    x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, t)

    def outer(params: Any) -> Any:
        return network.apply(params, x, t, capture_intermediates=True, mutable="intermediates")[1]

    found = jax.eval_shape(outer, params)["intermediates"]
    whole = [
        found[name]["__call__"][0].dtype for name in ("conv_in", "temb", "norm_out", "conv_out")
    ]
    assert set(whole) == {jnp.dtype("float32")}
    assert found["mid"]["block_1"]["conv1"]["__call__"][0].dtype == jnp.bfloat16
    text = str(jax.make_jaxpr(lambda p: network.apply(p, x, t))(params))
    assert "preferred_element_type=float32" in text


@pytest.mark.slow
def test_a_change_of_x_t_below_bfloat16_s_step_is_seen(data_dir: pathlib.Path) -> None:
    """Between 1 and 2 that step is 2^-7; rounding x_t itself would make the two outputs equal."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(1 + draw.integers(0, 128, (256, 8, 8, 1)) / 128, jnp.float32)
    change = jnp.asarray(draw.choice([-1.0, 1.0], x.shape), jnp.float32) / 1024
    t = jnp.full(256, 10)
    chosen = config(data_dir, "eps_simple")
    network = build(chosen).method.chain.network
    params = jax.jit(network.init)(jax.random.key(0), x[:1], t[:1])
    params = jax.tree.map(lambda p: p + 0.05 * draw.normal(size=p.shape).astype("f4"), params)
    responses = []
    for dtype in ("float32", "bfloat16"):
        chosen.model.dtype = dtype
        apply = jax.jit(build(chosen).method.chain.network.apply)
        responses.append(np.ravel(apply(params, x + change, t) - apply(params, x, t)))
    float32, bfloat16 = responses
    assert 0.5 < float32 @ bfloat16 / (float32 @ float32) < 1.5
