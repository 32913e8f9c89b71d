"""diffusers' models and samplers, driven with given weights and given noise."""

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel

from diffusion.networks.unet import UNet
from experiments.files.parameters import tensors_from_params
from experiments.weights import diffusers_config
from experiments.weights.unet_names import NAMINGS


def unet(model: UNet, image_shape: tuple[int, int, int]) -> UNet2DModel:
    """The UNet2DModel of the same topology, with its own random weights."""
    return UNet2DModel(**diffusers_config.unet_config(model, image_shape)).eval()


def load(theirs: UNet2DModel, params: Any, levels: int) -> None:
    """Gives `theirs` our parameters."""
    state = tensors_from_params(params, NAMINGS["diffusers"], levels)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})


def randomize(theirs: UNet2DModel) -> None:
    """Weights drawn from each one's name in diffusers, that keep activations O(1)."""
    with torch.no_grad():
        for i, (name, value) in enumerate(sorted(theirs.named_parameters())):
            draw = np.random.Generator(np.random.PCG64(i))
            new = draw.standard_normal(tuple(value.shape))
            if value.ndim > 1:
                new /= np.sqrt(np.prod(value.shape[1:]))
            else:
                new = 0.1 * new + ("norm" in name and name.endswith("weight"))
            value.copy_(torch.from_numpy(new))


def nchw(x: np.ndarray) -> torch.Tensor:
    """f32[B, H, W, C] as torch has it."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    """The inverse of `nchw`."""
    return x.permute(0, 2, 3, 1).numpy()


def predict(theirs: UNet2DModel, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The network's output, f32[B, H, W, C]."""
    with torch.no_grad():
        return nhwc(theirs(nchw(x), torch.from_numpy(t)).sample)


def step(
    theirs: UNet2DModel, scheduler: DDPMScheduler, t: int, x_t: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """One step of DDPMPipeline's loop from x_t, with z for its noise."""
    import diffusers.schedulers.scheduling_ddpm as module

    original = module.randn_tensor
    module.randn_tensor = lambda *_, **__: nchw(z)
    try:
        with torch.no_grad():
            output = theirs(nchw(x_t), t).sample
            return nhwc(scheduler.step(output, t, nchw(x_t)).prev_sample)
    finally:
        module.randn_tensor = original


def walk(
    theirs: UNet2DModel, scheduler: DDPMScheduler, timesteps: list[int], noise: np.ndarray
) -> np.ndarray:
    """DDPMPipeline's loop from x_T = noise[-1]; the step at chain position i gets noise[i].

    Args:
        timesteps: to visit, rising.
        noise: f32[len(timesteps) + 1, B, H, W, C].
    """
    scheduler.set_timesteps(timesteps=timesteps[::-1])
    x_t = noise[-1]
    for i in reversed(range(len(timesteps))):
        x_t = step(theirs, scheduler, timesteps[i], x_t, noise[i])
    return x_t
