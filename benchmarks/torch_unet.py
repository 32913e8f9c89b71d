"""The other side: diffusers' network, training step and sampler in torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

from benchmarks.cases import BETAS, TIMESTEPS, Case

TORCH_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def their_network(case: Case) -> Any:
    """The torch network of a case, in the memory format that is fastest there."""
    at = [case.size // 2**i in case.attention for i in range(len(case.multipliers))]
    network: Any = UNet2DModel(
        sample_size=case.size,
        in_channels=case.image_shape[-1],
        out_channels=case.image_shape[-1],
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in at],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(at)],
        block_out_channels=[case.width * m for m in case.multipliers],
        downsample_padding=0,
        dropout=case.dropout,
        attention_head_dim=None,
        norm_eps=1e-6,
    )
    return network.to(TORCH_DEVICE, memory_format=torch.channels_last)


def finish_torch() -> None:
    """Waits for torch's device."""
    if TORCH_DEVICE == "cuda":
        torch.cuda.synchronize()


def their_batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and timesteps for torch."""
    height, width, channels = case.image_shape
    x = torch.randn(case.batch, channels, height, width, device=TORCH_DEVICE)
    x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.arange(case.batch, device=TORCH_DEVICE)


def their_forward(case: Case, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """As `our_forward`."""
    network = wrap(their_network(case).eval())
    x, t = their_batch(case)

    def call() -> None:
        with torch.inference_mode():
            network(x, t)
        finish_torch()

    return call


def their_train(case: Case, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """As `our_train`."""
    plain = their_network(case).train()
    network = wrap(plain)
    params = list(plain.parameters())
    averages = [p.detach().clone() for p in params]
    optimizer = torch.optim.Adam(params, lr=2e-4, fused=True)
    alpha_bar = torch.from_numpy(np.cumprod(1.0 - BETAS)).float().to(TORCH_DEVICE)
    x, _ = their_batch(case)

    def call() -> None:
        t = torch.randint(0, TIMESTEPS, (case.batch,), device=TORCH_DEVICE)
        eps = torch.randn_like(x)
        signal = alpha_bar[t][:, None, None, None]
        x_t = signal.sqrt() * x + (1.0 - signal).sqrt() * eps
        loss = torch.nn.functional.mse_loss(network(x_t, t).sample, eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, [p.detach() for p in params], 1e-4)
        finish_torch()

    return call


def their_sample(
    case: Case, wrap: Callable[[Any], Any], steps: int, sampler: str
) -> Callable[[], None]:
    """diffusers' pipeline of a sampler, by our name."""
    network = wrap(their_network(case).eval())
    linear: Any = dict(num_train_timesteps=TIMESTEPS, beta_start=1e-4, beta_end=0.02)
    pipeline: Any
    if sampler == "ddim":
        pipeline = DDIMPipeline(network, DDIMScheduler(**linear))
    elif sampler == "dpm_solver_pp":
        scheduler = DPMSolverMultistepScheduler(**linear, beta_schedule="linear", solver_order=2)
        pipeline = DDPMPipeline(network, scheduler)
    else:
        pipeline = DDPMPipeline(network, DDPMScheduler(**linear, variance_type="fixed_large"))
    pipeline.set_progress_bar_config(disable=True)

    def call() -> None:
        pipeline(batch_size=case.batch, num_inference_steps=steps, output_type="np")
        finish_torch()

    return call
