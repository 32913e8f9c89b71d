import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.optimizers import OPTIMIZERS, adam, rmsprop, update_ema


def run(optimizer: optax.GradientTransformation, gradients: list[np.ndarray]) -> list[np.ndarray]:
    params = {"w": jnp.zeros(gradients[0].shape)}
    state = optimizer.init(params)
    path = []
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params["w"]))
    return path


def reference(gradients: list[np.ndarray], rate, eps: float, hat: bool) -> list[np.ndarray]:
    """Kingma and Ba in float64, with epsilon-hat or with epsilon."""
    w = m = v = np.zeros(gradients[0].shape)
    path = []
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        if hat:
            step = np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
        else:
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + eps)
        w = w - rate(t - 1) * step
        path.append(w)
    return path


@pytest.mark.parametrize("hat", [True, False])
def test_adam_follows_the_formula(hat: bool) -> None:
    """With gradients as small as epsilon, where its place matters."""
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=5) * 1e-6 for _ in range(12)]
    eps = 1e-7
    actual = run(adam(0.1, warmup_steps=4, eps=eps, epsilon_hat=hat), gradients)
    expected = reference(gradients, lambda step: 0.1 * min(step / 4, 1), eps, hat)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)
    other = reference(gradients, lambda step: 0.1 * min(step / 4, 1), eps, not hat)
    assert abs(np.asarray(actual) - other).max() > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_rmsprop_follows_the_formula(momentum: float) -> None:
    """TensorFlow 1's, in float64; gradients are so small at last that eps matters, and its place.

    A mean square that began at 0, or eps outside the root, would give other steps.
    """
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=5) * 10.0**-i for i in range(8)]
    eps, decay = 1e-4, 0.5
    optimizer = rmsprop(0.1, warmup_steps=4, decay=decay, momentum=momentum, eps=eps)
    w, v, u = np.zeros(5), np.ones(5), np.zeros(5)
    expected = []
    for step, g in enumerate(gradients):
        v = decay * v + (1 - decay) * g**2
        u = momentum * u + 0.1 * min(step / 4, 1) * g / np.sqrt(v + eps)
        w = w - u
        expected.append(w)
    np.testing.assert_allclose(run(optimizer, gradients), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", OPTIMIZERS.values())
def test_the_first_update_of_a_warmup_is_nothing(make) -> None:
    path = run(make(0.1, warmup_steps=10), [np.ones(3)] * 2)
    assert (path[0] == 0).all() and (path[1] != 0).all()
    assert (run(make(0.1, warmup_steps=0), [np.ones(3)])[0] != 0).all()


@pytest.mark.parametrize("decay", [0.9999, 0.99995])
def test_the_ema_of_noisy_parameters_is_the_float64_one(decay: float) -> None:
    """100,000 steps around values of one to a thousand; rounding is random, a bias is not."""
    steps, centres = 100_000, np.geomspace(1, 1000, 256) * (-1) ** np.arange(256)
    params = np.random.default_rng(0).standard_normal((steps, 256), np.float32)
    params = np.float32(centres) * (1 + np.float32(0.05) * params)

    def step(ema: jax.Array, p: jax.Array) -> tuple[jax.Array, None]:
        return update_ema(ema, p, decay), None

    start = np.float32(centres)
    actual, _ = jax.jit(lambda ema, p: jax.lax.scan(step, ema, p))(start, params)
    expected = start.astype(np.float64)
    for p in params:
        expected += (1 - decay) * (p - expected)
    error = np.asarray(actual, np.float64) / expected - 1
    assert abs(error.mean()) < 1e-6 and abs(error).max() < 2e-5
