"""Every compiled function behind a reported number, against itself run operation by operation.

    python -m tests.experiments.compiled DATA_DIR

Prints the largest difference of each in units of what it is about, and the sum that jaxlib 0.10
gets wrong where products are fused. Run apart from the tests, whose compiler optimises nothing.
The batch has more than 32,768 rows of a dense layer.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import devices, drawing, train
from experiments.build import build
from experiments.configs import digits
from experiments.data.dataset import read_images
from experiments.experiment import Experiment
from experiments.features.extractors import Extractor, make_feature_fn
from experiments.features.inception import extract
from experiments.features.inception_weights import params_from_state
from experiments.metrics import bound, flow
from experiments.state import TrainState, init_state
from tests.fixtures import make_inception

ROWS = 32_769  # one more than is summed right
BATCH = -(-ROWS // 64)  # of 8x8 images, whose every pixel is a row


def known_sum() -> float:
    """|x|^2 of the last of ROWS vectors (32768, 0, 0): 2^30 = 1073741824."""
    x = jnp.stack((jnp.arange(float(ROWS)), jnp.zeros(ROWS), jnp.zeros(ROWS)), 1)

    def squares(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)

    return float(devices.jit(squares, precision="default")(x)[-1])


def experiment(data_dir: str) -> Experiment:
    """Attention over all 64 pixels, so that its products and the shortcut have BATCH * 64 rows."""
    config = digits.get_config()
    config.data.data_dir = data_dir
    config.schedule = ConfigDict(
        dict(name="linear", num_timesteps=3, beta_start=0.05, beta_end=0.7)
    )
    config.model.channels, config.model.norm_groups = 8, 4
    config.model.channel_multipliers, config.model.attention_resolutions = (1,), (8,)
    config.train.batch_size, config.train.steps_per_call = BATCH, 1
    config.train.preview_num_steps = 3
    config.evaluate.ode_tolerance = 0.1
    return build(config)


def shaken(params: Any) -> Any:
    """Away from the zeros of a new network, behind which nothing would show."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.05 * draw.normal(size=x.shape).astype("f4"), params)


def largest(compiled: Any, plain: Any) -> float:
    """The largest difference of two trees in units of the second one's root mean square."""
    a, b = (
        np.concatenate([np.ravel(np.float64(leaf)) for leaf in jax.tree.leaves(tree)])
        for tree in (compiled, plain)
    )
    return float(np.max(np.abs(a - b)) / np.sqrt(np.mean(b**2)))


def differences(data_dir: str) -> dict[str, float]:
    """Of the bound, the flow, the samples, the train step and the features."""
    model, mesh = experiment(data_dir), devices.make_mesh()
    params = shaken(model.method.init(jax.random.key(0)))
    batch = jax.tree.map(np.asarray, read_images(model.dataset.open("train"), 0, BATCH))
    indices = np.arange(BATCH, dtype=np.int32)
    timesteps = np.arange(3, dtype=np.int32)[:, None].repeat(BATCH, 1)

    def state() -> TrainState:
        new = init_state(model)._replace(params=params, ema_params=params)
        return jax.tree.map(jnp.copy, new)  # it is donated, so that no two leaves may be one

    def first_moment(result: Any) -> Any:
        """Of Adam, a tenth of the gradient; its update would divide rounding by rounding."""
        return result[0].opt_state[0].mu

    # A new compiled function for each run: a traced one would not run operation by operation.
    runs: dict[str, Callable[[], Any]] = {
        "bound": lambda: bound.make_terms_fn(model, mesh, model.method.chain.denoise)(
            params, batch, indices, timesteps, np.int32(0)
        ),
        "samples": lambda: drawing.make_sample_fn(model, mesh, num_steps=0, quantize="none")(
            params, indices
        )[0],
        "train step": lambda: first_moment(
            train.make_train_call(model, mesh)(state(), jax.tree.map(lambda x: x[None], batch))
        ),
        "flow": lambda: flow.make_flow_fn(model, mesh)(params, batch, indices)[0],
    }
    weights = params_from_state(make_inception.random_state())
    extractor = Extractor("inception-2015-12-05", "", weights, extract)
    pictures = make_inception.random_images((32, 32), seed=1, n=2)  # 147 x 147 rows each
    runs["features"] = lambda: make_feature_fn(extractor, mesh)(pictures)
    found = {}
    for name, run in runs.items():
        compiled = jax.device_get(run())
        with jax.disable_jit():
            plain = jax.device_get(run())
        found[name] = largest(compiled, plain)
    return found


if __name__ == "__main__":
    print(json.dumps({"sum": known_sum(), **differences(sys.argv[1])}))
