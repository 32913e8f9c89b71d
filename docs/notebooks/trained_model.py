# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: -all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A trained model in Python
#
# `experiments.load` gives the model of a working directory: arrays in, arrays out. The pictures
# below are of the digits model that the first command of the README trains in a quarter of an hour;
# any other run of this program works as well: name its `--workdir` in the environment variable
# `DDPM_RUN`. A path that is not absolute starts at the root of the repository.

# %%
# %matplotlib inline
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import experiments
from diffusion.forward import q_sample
from experiments.data.dataset import read_images
from experiments.images import tile

ROOT = Path(experiments.__file__).parents[1]
RUN = ROOT / os.environ.get("DDPM_RUN", "runs/digits")

model = experiments.load(RUN)
print(model)

# %% [markdown]
# ## Sampling
#
# `sample` returns `uint8[n, height, width, channels]`. Image i depends on the seed and on i, so the
# same call gives the same images, which are also those of `--mode=sample` under this seed. A
# class-conditional model draws its classes in turn, or those asked for: `labels=[3, 3, 7]`.


# %%
def show(pictures, columns, title):
    """Pictures of uint8[n, height, width, channels] in rows of `columns`."""
    rows = -(-len(pictures) // columns)
    plt.figure(figsize=(0.7 * columns, 0.7 * rows + 0.3))
    plt.imshow(tile(np.asarray(pictures), columns), cmap="gray", vmin=0, vmax=255)
    plt.title(title, fontsize=9)
    plt.axis("off")
    plt.show()


samples = model.sample(16, seed=0)
show(samples, 8, f"16 samples, all {model.experiment.method.num_steps} steps")
print(samples.dtype, samples.shape)

# %%
again, other = model.sample(16, seed=0), model.sample(16, seed=1)
print("same seed, same images:   ", np.array_equal(samples, again))
print("another seed, same images:", np.array_equal(samples, other))

# %% [markdown]
# ## Fewer steps
#
# The chain can be walked in fewer steps, evenly spaced, in proportionally less time. Image i starts
# from the same noise whatever the number of steps, but the noise added on the way is another, so
# that other digits come out.

# %%
num_timesteps = model.experiment.method.num_steps
for steps in (max(1, num_timesteps // 10), max(1, num_timesteps // 100)):
    show(model.sample(8, seed=0, steps=steps), 8, f"{steps} steps")

# %% [markdown]
# ## Noise, and what the model sees through it
#
# `encode` turns images into what the model works on (pixels in [-1, 1]), `q_sample` adds the noise
# of timestep t (Equation 4), `denoise` gives the model's estimate of the clean image in one call of
# the network, and `decode` turns such arrays into images again. Timesteps count from 0, so the
# paper's T is T - 1 here.

# %%
dataset = model.experiment.dataset
held_out = read_images(dataset.open(dataset.splits[-1]), 0, 8)
images = held_out["image"]
labels = held_out["label"] if model.experiment.method.num_classes else None

schedule = model.experiment.method.chain.process.schedule
timesteps = [round(part * (num_timesteps - 1)) for part in (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1)]

x_0 = model.encode(images[:1]).repeat(len(timesteps), axis=0)
eps = jax.random.normal(jax.random.key(0), x_0.shape)
x_t = q_sample(schedule, x_0, np.array(timesteps), eps)
estimates = model.denoise(x_t, timesteps, None if labels is None else labels[:1].repeat(len(x_0)))

figure, axes = plt.subplots(3, len(timesteps), figsize=(1.2 * len(timesteps), 3.8))
for row, name, x in zip(axes, ("image", "noisy", "estimate"), (x_0, x_t, estimates), strict=True):
    for axis, picture in zip(row, model.decode(x), strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
for axis, t in zip(axes[0], timesteps, strict=True):
    axis.set_title(f"t = {t}", fontsize=9)
plt.show()

# %% [markdown]
# At small t the estimate is the image; the more noise, the more it becomes the mean of all images
# that it could have been. This model predicts the noise, and its estimate of the image is what is
# left of x_t without it, divided by sqrt(alpha_bar_t). At t = T - 1 that is a division by almost 0,
# which enlarges every error. `denoise` shows it as it is; sampling clips it to [-1, 1].
#
# ## Bits per dimension
#
# `bits_per_dim` is the variational bound on the negative log-likelihood of each image, all T terms
# of it (Equation 5), in bits per pixel and channel: how many bits a code made from this model would
# spend. Images that it did not train on are cheap; noise, which it has never seen, is not.

# %%
noise = model.decode(np.random.default_rng(0).uniform(-1, 1, (8, *x_0.shape[1:])))
real_bits = model.bits_per_dim(images, labels)
noise_bits = model.bits_per_dim(noise, labels)

figure, axes = plt.subplots(2, 8, figsize=(8.4, 2.6))
pictures, bits = np.concatenate([images, noise]), np.concatenate([real_bits, noise_bits])
for axis, picture, value in zip(axes.flat, pictures, bits, strict=True):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set_title(f"{value:.2f}", fontsize=9)
    axis.axis("off")
plt.show()
print(f"held-out images: {real_bits.mean():.2f} bits/dim, noise: {noise_bits.mean():.2f}")

# %% [markdown]
# ## Parameters
#
# `params` is a tree of float32 arrays, the moving average (EMA) of the trained ones.

# %%
for name, part in model.params.items():
    print(f"{name:24} {sum(leaf.size for leaf in jax.tree.leaves(part)):>12,}")
print(f"{'in all':24} {sum(leaf.size for leaf in jax.tree.leaves(model.params)):>12,}")
