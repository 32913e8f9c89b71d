"""The switches of training against those of PyTorch and diffusers."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comparing with PyTorch needs the parity extra")
training_utils = pytest.importorskip(
    "diffusers.training_utils", reason="comparing with diffusers needs the parity extra"
)

import optax  # noqa: E402

from experiments.optimizers import adam, ema_decay, update_ema  # noqa: E402

pytestmark = pytest.mark.parity


def test_weight_decay_is_that_of_pytorch_s_adamw() -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=6).astype(np.float32), rng.normal(size=(30, 6))
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.AdamW([theirs], lr=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.2)
    options = dict(warmup_steps=0, b1=0.9, b2=0.99, eps=1e-6, epsilon_hat=False)
    ours = adam(0.05, **options, weight_decay=0.2)
    params = jnp.asarray(start)
    state = ours.init(params)
    for gradient in gradients.astype(np.float32):
        theirs.grad = torch.from_numpy(gradient)
        optimizer.step()
        updates, state = ours.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, theirs.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("power", [2 / 3, 1.0])
def test_the_average_warms_up_as_that_of_diffusers(power: float) -> None:
    """At once for the first update, which forgets the initial parameters."""
    rng = np.random.default_rng(1)
    theirs = torch.nn.Parameter(torch.zeros(3))
    model = training_utils.EMAModel(
        [theirs], decay=0.95, use_ema_warmup=True, inv_gamma=1.0, power=power
    )
    ema = jnp.zeros(3)
    for step, p in enumerate(rng.normal(size=(60, 3)).astype(np.float32)):
        theirs.data = torch.from_numpy(p)
        model.step([theirs])
        ema = update_ema(ema, jnp.asarray(p), ema_decay(0.95, power, jnp.int32(step)))
        expected = model.shadow_params[0].numpy()
        np.testing.assert_allclose(ema, expected, rtol=1e-4, atol=1e-6)
