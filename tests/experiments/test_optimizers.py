import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import devices
from experiments.gradients import clip_global, clip_per_core
from experiments.optimizers import adam, update_ema


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


def test_the_first_update_of_a_warmup_is_nothing() -> None:
    path = run(adam(0.1, warmup_steps=10), [np.ones(3)] * 2)
    assert (path[0] == 0).all() and (path[1] != 0).all()
    assert (run(adam(0.1, warmup_steps=0), [np.ones(3)])[0] != 0).all()


def objective(params, examples, key):
    losses = jnp.square(examples @ params["w"] - 1.0)
    return losses.mean(), losses


PARAMS = {"w": jnp.array([0.5, -2.0, 3.0])}
EXAMPLES = jax.random.normal(jax.random.key(0), (16, 3))


def gradient(clip, mesh, params=PARAMS, examples=EXAMPLES):
    return jax.jit(lambda p, e: clip(mesh, objective, p, e, jax.random.key(1)))(params, examples)


def one() -> jax.sharding.Mesh:
    return devices.make_mesh(jax.devices()[:1])


def plain(examples):
    return jax.grad(lambda p: objective(p, examples, None)[0])(PARAMS)["w"]


def test_global_clipping_keeps_the_direction_and_limits_the_norm() -> None:
    expected = plain(EXAMPLES)
    norm = float(jnp.linalg.norm(expected))
    loose = gradient(clip_global(max_norm=2 * norm), one())
    np.testing.assert_allclose(loose.value["w"], expected, rtol=1e-5)
    tight = gradient(clip_global(max_norm=0.5), one())
    np.testing.assert_allclose(tight.value["w"], expected * 0.5 / norm, rtol=1e-5)
    assert float(tight.norm) == pytest.approx(norm, rel=1e-5)
    np.testing.assert_allclose(tight.losses, objective(PARAMS, EXAMPLES, None)[1], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_per_core_clipping_clips_every_group_on_any_number_of_devices(count: int) -> None:
    mesh = devices.make_mesh(jax.devices()[:count])
    groups = [plain(EXAMPLES[i : i + 4]) for i in range(0, 16, 4)]
    norms = [float(jnp.linalg.norm(group)) for group in groups]
    limit = float(np.median(norms))
    expected = sum(g * min(1, limit / n) for g, n in zip(groups, norms, strict=True)) / 4
    result = gradient(clip_per_core(max_norm=limit, images_per_core=4), mesh)
    np.testing.assert_allclose(result.value["w"], expected, rtol=1e-5)
    assert float(result.norm) == pytest.approx(np.mean(norms), rel=1e-5)
    np.testing.assert_allclose(result.losses, objective(PARAMS, EXAMPLES, None)[1], rtol=1e-5)
    # Without a limit the two kinds agree; with one they do not.
    free = gradient(clip_per_core(max_norm=1e9, images_per_core=4), mesh).value["w"]
    np.testing.assert_allclose(free, plain(EXAMPLES), rtol=1e-5)
    whole = gradient(clip_global(max_norm=limit), one()).value["w"]
    assert float(jnp.abs(result.value["w"] - whole).max()) > 1e-3


@pytest.mark.parametrize(("images", "count"), [(5, 1), (8, 8), (32, 1)])
def test_groups_that_do_not_fit_are_refused(images: int, count: int) -> None:
    mesh = devices.make_mesh(jax.devices()[:count])
    with pytest.raises(ValueError, match=f"batch of 16 into groups of images_per_core = {images}"):
        gradient(clip_per_core(images_per_core=images), mesh)


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
