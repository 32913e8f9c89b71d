"""The contract of a generative model: what the loop, the sampler and the metrics see of it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8
from ml_collections import ConfigDict

from diffusion.likelihood import Decoder
from diffusion.networks.network import Network
from diffusion.reverse import Denoise, Threshold
from diffusion.structs import Gaussian, Levels, Likelihood, Process, Sampler, Schedule
from diffusion.walk import Samples
from experiments import images
from experiments.data.dataset import Dataset, InMemory, Tokenizer

DTYPES = MappingProxyType({"float32": jnp.float32, "bfloat16": jnp.bfloat16})
Keys = Callable[[str], Key[Array, " b"]]  # the name of a use of randomness -> a key an example


def dtype_of(config: ConfigDict) -> str:
    """A key of DTYPES: what the network of a config computes in."""
    return str(config.model.get("dtype", "float32"))


class VAE(NamedTuple):
    """A variational autoencoder, for what has to look inside.

    latent_shape: of z.
    encode: (params, x f32[B, H, W, C] in [-1, 1]) -> q(z | x), f32[B, *latent_shape].
    decode: (params, z) -> what `likelihood` makes p(x | z) of. Both take train and rngs too.
    likelihood: p(x | z).
    """

    latent_shape: tuple[int, ...]
    encode: Callable[..., Gaussian]
    decode: Callable[..., jax.Array]
    likelihood: Likelihood


class Latents(NamedTuple):
    """A trained autoencoder below a model of its latents.

    vae, params: as trained.
    shift, scale: f32, x_0 = (z - shift) * scale.
    """

    vae: VAE
    params: Any
    shift: jax.Array
    scale: jax.Array


class Encoder(NamedTuple):
    """Between stored images and what a method models; pixels for all but latent diffusion.

    shape: of one example of what is modelled.
    keep: uint8[B, H, W, C] -> [B, ...], all that training needs of images.
    draw: (what is kept [B, ...], keys [B]) -> f32[B, *shape], an example of each.
    encode: uint8[B, H, W, C] -> f32[B, *shape], without chance.
    decode: f32[B, *shape] -> f32[B, H, W, C], images in [-1, 1].
    in_memory: a source of images that training reads from memory -> what it needs of them, `keep`
        done once for all.
    protocol: what it adds to the protocols of numbers.
    latents: the autoencoder, where it is one.
    """

    shape: tuple[int, ...]
    keep: Callable[[UInt8[Array, "b h w c"]], Shaped[Array, "b ..."]]
    draw: Callable[[Shaped[Array, "b ..."], Key[Array, " b"]], Float[Array, "b *x"]]
    encode: Callable[[UInt8[Array, "b h w c"]], Float[Array, "b *x"]]
    decode: Callable[[Float[Array, "b *x"]], Float[Array, "b h w c"]]
    in_memory: Callable[[InMemory], InMemory] = lambda source: source
    protocol: Mapping[str, Any] = MappingProxyType({})
    latents: Latents | None = None


def pixels(dataset: Dataset, /) -> Encoder:
    """The images themselves, in [-1, 1]."""

    def encode(image: jax.Array) -> jax.Array:
        return images.to_model(image, dataset.num_levels)

    return Encoder(
        shape=dataset.image_shape,
        keep=lambda image: image,
        draw=lambda image, keys: encode(image),
        encode=encode,
        decode=lambda x: x,
    )


class Sampling(NamedTuple):
    """One way to draw examples, an example a key, in as many parts as whoever draws likes.

    All functions are pure and compiled by the caller; every leaf of `state` is [B, ...].

    num_steps: in all; the parts of a drawing take falling steps from num_steps - 1 to 0.
    begin: (params, keys, labels i32[B, ...]) -> state.
    advance: (params, keys, labels, state, steps i32[n]) -> state.
    end: state -> Samples.
    """

    num_steps: int
    begin: Callable[[Any, Key[Array, " b"], Int[Array, "b ..."]], Any]
    advance: Callable[[Any, Key[Array, " b"], Int[Array, "b ..."], Any, Int[Array, " n"]], Any]
    end: Callable[[Any], Samples]


class MakeSampling(Protocol):
    """How a method draws: (number of steps, steps to record) -> Sampling."""

    def __call__(self, steps: int, record: tuple[int, ...]) -> Sampling:
        """Args:
        steps: how many; 0 is the method's own number.
        record: steps, counted down to 0, whose estimates of x_0 are returned.
        """


def at_once(draw: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> MakeSampling:
    """The sampling of a method that takes a single step, whose estimate of x_0 is what it drew.

    Args:
        draw: (params, keys, labels i32[B, ...]) -> f32[B, ...].
    """

    def make(steps: int, record: tuple[int, ...]) -> Sampling:
        def end(x_0: jax.Array) -> Samples:
            progress = jnp.broadcast_to(x_0, (len(record), *x_0.shape))
            return Samples(x_0, progress, jnp.ones(len(x_0), jnp.int32))

        return Sampling(1, draw, lambda params, keys, labels, x_0, steps: x_0, end)

    return make


class Respaced(NamedTuple):
    """The part of a process that sampling walks.

    schedule: the chain of these steps.
    denoise: its reverse process under the guidance and the threshold of sampling.
    levels: the same chain as samplers take it.
    """

    schedule: Schedule
    denoise: Denoise
    levels: Levels


class Chain(NamedTuple):
    """A diffusion process and the network on it, for what has to look inside.

    process: schedule, parameterization and variance that the network was trained for.
    network: as it is, for weights of other programs.
    apply: (params, x_t, t, **condition) -> the network's output.
    guided: as `apply`, under the guidance of sampling.
    condition: labels i32[B, ...] -> the network's inputs beside x_t and t.
    threshold: of the estimate of x_0 in likelihoods.
    denoise: the reverse process on the whole chain under that threshold, not guided.
    decoder: of L_0, for the data's number of levels.
    levels: of the whole process.
    sampler: levels -> how they are walked.
    flags: the sampler on some levels, for what it says of itself.
    spacing: {name, **options} of the levels that sampling walks.
    deviation: of x_T, 1 but for paths that end in more noise.
    respaced: number of steps (0: the sampler's own) -> what sampling walks.
    """

    process: Process
    network: Network
    apply: Callable[..., jax.Array]
    guided: Callable[..., jax.Array]
    condition: Callable[[jax.Array], dict[str, jax.Array]]
    threshold: Threshold
    denoise: Denoise
    decoder: Decoder
    levels: Levels
    sampler: Callable[[Levels], Sampler]
    flags: Sampler
    spacing: Mapping[str, Any]
    deviation: float
    respaced: Callable[[int], Respaced]


class Method(NamedTuple):
    """A generative model as pure functions of parameters, examples and keys.

    init: key -> parameters, float32.
    memory: () -> what drawing examples remembers between steps; () for most.
    draw: (memory, x_0 f32[B, ...], labels i32[B, ...], Keys) -> examples, every leaf [B, ...].
    losses: (params, examples, key) -> (f32[B], whose mean is minimised; details [B, ...] of it).
    remember: (memory, examples, details) -> memory.
    summary: (examples, details) -> name -> (sums, counts), whose ratios are columns of the log.
    sampling: how examples are drawn.
    num_steps: of sampling, where none are asked for.
    num_classes: of the labels that sampling heeds; 0 where it heeds none.
    null_class: whether label num_classes asks for no class in particular, or a caption without
        words for no caption.
    protocol: what samples depend on beside parameters, seed, labels and number of steps.
    description: lines that a program says of it at the start.
    chain: the diffusion process, where the method is one.
    vae: the autoencoder, where the method is one.
    tokenizer: of the captions that sampling heeds, which then are the labels; None where it heeds
        none.
    """

    init: Callable[[jax.Array], Any]
    memory: Callable[[], Any]
    draw: Callable[[Any, jax.Array, jax.Array, Keys], Any]
    losses: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    remember: Callable[[Any, Any, Any], Any]
    summary: Callable[[Any, Any], dict[str, tuple[jax.Array, jax.Array]]]
    sampling: MakeSampling
    num_steps: int
    num_classes: int
    null_class: bool
    protocol: Mapping[str, Any]
    description: tuple[str, ...]
    chain: Chain | None = None
    vae: VAE | None = None
    tokenizer: Tokenizer | None = None


def chain_of(method: Method, purpose: str) -> Chain:
    """The method's diffusion process.

    Raises:
        ValueError: where it has none, saying what asked for it.
    """
    if method.chain is None:
        raise ValueError(
            f"{purpose} needs the timesteps of a diffusion process, which the method of the config "
            "(config.method) does not have. Leave it out, or choose the method `diffusion`."
        )
    return method.chain


def count_parameters(init: Callable[[jax.Array], Any]) -> int:
    """How many numbers `init` makes."""
    params = jax.eval_shape(lambda: init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def vae_of(method: Method, purpose: str) -> VAE:
    """The method's autoencoder.

    Raises:
        ValueError: where it has none, saying what asked for it.
    """
    if method.vae is None:
        raise ValueError(
            f"{purpose} needs the encoder and decoder of a VAE, which the method of the config "
            "(config.method) does not have. Leave it out, or choose the method `vae`."
        )
    return method.vae
