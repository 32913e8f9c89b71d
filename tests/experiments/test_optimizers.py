import importlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import configs
from experiments.configs import base, ranges
from experiments.optimizers import (
    OPTIMIZERS,
    adam,
    describe_average,
    ema_decay,
    rate_schedule,
    rmsprop,
    share_of_start,
    update_ema,
)


@pytest.mark.parametrize("warmup", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("updates", [1, 5, 200])
def test_the_share_of_the_start_is_what_the_average_keeps_of_it(warmup, updates) -> None:
    """An average that begins at 1 and takes zeros in from then on."""
    average = jnp.ones(())
    for step in range(updates):
        average = update_ema(average, jnp.zeros(()), ema_decay(0.99, warmup, jnp.asarray(step)))
    assert share_of_start(0.99, warmup, updates) == pytest.approx(float(average), rel=1e-4)


@pytest.mark.parametrize("updates", [2, 10, 100, 5_000, 46_000])
def test_an_average_that_keeps_its_start_is_told_with_what_mends_it(updates: int) -> None:
    config = base.get_config()
    [said] = describe_average(config, updates)
    share = 0.9999**updates
    assert f"{share:.0%} of the average" in said and f"over {updates:,} steps" in said
    if updates == 5_000:
        assert "61% of the average" in said
    advised = re.findall(r"--config\.(\w+)=([\d.]*\d)", said)
    assert [name for name, _ in advised] == ["ema_warmup", "ema_decay"]
    for name, value in advised:
        better = base.get_config()
        better[name] = float(value)
        ranges.check(better)
        assert describe_average(better, updates) == []


def test_no_config_of_this_repository_keeps_its_start() -> None:
    for module in pkgutil.iter_modules(configs.__path__):
        found = importlib.import_module(f"experiments.configs.{module.name}")
        get = getattr(found, "get_config", None)
        if get is not None and module.name != "saved":
            config = get()
            assert describe_average(config, config.train.num_steps) == [], module.name


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


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_the_rate_rises_along_a_line_and_falls_along_half_a_cosine(warmup_steps: int) -> None:
    steps = np.arange(130)
    rate = np.array([float(rate_schedule(2.0, warmup_steps, 110, 0.5)(step)) for step in steps])
    fallen = np.clip((steps - warmup_steps) / (110 - warmup_steps), 0, 1)
    expected = 0.5 + 1.5 * (1 + np.cos(np.pi * fallen)) / 2
    rising = steps < warmup_steps
    expected[rising] = 2.0 * steps[rising] / max(warmup_steps, 1)
    np.testing.assert_allclose(rate, expected, rtol=1e-5, atol=1e-7)
    kept = [float(rate_schedule(2.0, warmup_steps)(step)) for step in steps]
    np.testing.assert_allclose(kept[warmup_steps:], 2.0)


def test_every_optimizer_follows_the_cosine() -> None:
    """Updates by a gradient of always the same size have the size of the rate, or near it."""
    options = dict(warmup_steps=0, cosine_steps=40, final_learning_rate=0.01)
    for make in OPTIMIZERS.values():
        path = np.array(run(make(0.1, **options), [np.ones(1)] * 60))[:, 0]
        sizes = -np.diff(path)
        assert np.argmax(sizes < 0.0101 * (1 + 1e-3)) == pytest.approx(38, abs=1)
        np.testing.assert_allclose(sizes[40:], 0.01, rtol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(warmup_steps=50, cosine_steps=50), "cosine_steps = 50 must be above warmup_steps"),
        (dict(final_learning_rate=0.1), "final_learning_rate = 0.1 is never reached"),
    ],
)
def test_a_rate_that_has_no_meaning_is_refused(options: dict, message: str) -> None:
    for make in OPTIMIZERS.values():
        with pytest.raises(ValueError, match=message):
            make(0.1, **options)


def test_weight_decay_shrinks_by_the_rate_and_not_by_the_gradient() -> None:
    """Without a gradient parameters fall geometrically; with one, its part is Adam's alone."""
    rate, decay = 0.1, 0.3
    optimizer, params = adam(rate, warmup_steps=2, weight_decay=decay), jnp.array([1.0, -5.0])
    state = optimizer.init(params)
    for n in range(5):
        updates, state = optimizer.update(jnp.zeros(2), state, params)
        after = optax.apply_updates(params, updates)
        np.testing.assert_allclose(after, params * (1 - rate * min(n / 2, 1) * decay), rtol=1e-6)
        params = after
    gradients = [np.random.default_rng(0).normal(size=3) for _ in range(20)]
    decayed = run(adam(rate, warmup_steps=0, weight_decay=decay), gradients)
    w, plain = np.zeros(3), np.array(run(adam(rate, warmup_steps=0), gradients))
    for before, now, found in zip(np.array([w, *plain]), plain, decayed, strict=False):
        w = w * (1 - rate * decay) + (now - before)
        np.testing.assert_allclose(found, w, rtol=1e-4, atol=1e-6)


def test_an_average_that_warms_up_is_the_mean_until_the_decay_is_reached() -> None:
    params = np.random.default_rng(0).normal(size=(300, 4))
    ema, found = jnp.full(4, 100.0), []
    for step, p in enumerate(params):
        ema = update_ema(ema, jnp.float32(p), ema_decay(0.99, 1.0, jnp.int32(step)))
        found.append(np.asarray(ema))
    means = np.cumsum(params, axis=0) / np.arange(1, 301)[:, None]
    np.testing.assert_allclose(found[:100], means[:100], atol=2e-5)
    expected = means[99]
    for p, actual in zip(params[100:], found[100:], strict=True):
        expected = 0.99 * expected + 0.01 * p
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert ema_decay(0.99, 0.0, jnp.int32(5)) == 0.99


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
