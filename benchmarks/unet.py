"""Times this U-Net against diffusers' UNet2DModel in torch, the same sizes in the same run.

    python -m benchmarks.unet --width=32,128 --batch=64,8 --part=train,forward,sample

Needs the parity extra. Both sides run on whatever device their library finds, one call of each in
turn. Every time is a median with the fastest call in brackets, ratios likewise: where the two are
far apart, something else used the machine, and the run should be repeated. A train step is loss,
gradient, clipping at norm 1, Adam and EMA. Sampling walks `--steps` of the 1,000 timesteps with the
published scheduler of each --sampler on either side. "of peak" is the share of the rate of a large
float32 matrix product, both at their fastest. On GPUs both libraries may round products to TF32.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave torch its share

import jax
import jax.numpy as jnp
import optax
import torch

from benchmarks.cases import BETAS, TIMESTEPS, Case, make_case
from benchmarks.torch_unet import (
    TORCH_DEVICE,
    their_forward,
    their_sample,
    their_train,
)
from diffusion import thresholds
from diffusion.losses import make_loss_fn, simple
from diffusion.networks.unet import UNet
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.paths import levels_of
from diffusion.reverse import make_denoise
from diffusion.samplers import SAMPLERS
from diffusion.schedules import from_betas, respace
from diffusion.spacings import uniform
from diffusion.structs import Process
from diffusion.variances import VARIANCES
from diffusion.walk import begin, walk
from experiments import devices
from experiments.files import markdown
from experiments.optimizers import adam, update_ema

EPS, FIXED_LARGE = PARAMETERIZATIONS["eps"], VARIANCES["fixed_large"]


def our_network(case: Case) -> UNet:
    """The Flax network of a case."""
    return UNet(
        out_channels=case.image_shape[-1],
        channels=case.width,
        channel_multipliers=case.multipliers,
        attention_resolutions=case.attention,
        dropout=case.dropout,
    )


class Ours(NamedTuple):
    """One call to time, and the FLOPs that XLA counts in it (0: not counted)."""

    call: Callable[[], Any]
    flops: float


def apply_network(network: UNet) -> Callable[..., Any]:
    """(params, x_t, t, **inputs) -> output."""

    def apply(params: Any, x_t: jax.Array, t: jax.Array, **inputs: Any) -> Any:
        return network.apply({"params": params}, x_t, t, **inputs)

    return apply


def compile_ours(
    function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()
) -> tuple[Callable[..., Any], float]:
    """The compiled function, and the FLOPs of the program before it was optimised."""
    lowered = devices.jit(function, precision="default", donate_argnums=donate).lower(*arguments)
    cost = lowered.cost_analysis()
    return lowered.compile(), float((cost or {}).get("flops", 0.0))


def our_params(case: Case) -> tuple[UNet, Any, jax.Array]:
    """The network, initial parameters and a batch of images."""
    network = our_network(case)
    x = jax.random.normal(jax.random.key(1), (case.batch, *case.image_shape))
    params = devices.jit(network.init, precision="default")(
        jax.random.key(0), x[:1], jnp.zeros(1, jnp.int32)
    )["params"]
    return network, params, x


def our_forward(case: Case) -> Ours:
    """The network alone."""
    network, params, x = our_params(case)
    t = jnp.arange(case.batch)
    forward, flops = compile_ours(apply_network(network), params, x, t)
    return Ours(lambda: jax.block_until_ready(forward(params, x, t)), flops)


def our_train(case: Case) -> Ours:
    """A step of Algorithm 1 that draws its own t, noise and dropout, as training does."""
    network, params, x = our_params(case)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam(2e-4))
    loss_fn = make_loss_fn(
        apply_network(network),
        Process(from_betas(BETAS), EPS, FIXED_LARGE),
        simple,
    )

    def step(state: Any, x: jax.Array) -> Any:
        params, ema, opt_state, key = state
        key, key_t, key_eps, key_dropout = jax.random.split(key, 4)
        t = jax.random.randint(key_t, x.shape[:1], 0, TIMESTEPS)
        eps = jax.random.normal(key_eps, x.shape)

        def loss(params: Any) -> jax.Array:
            rngs = {"dropout": key_dropout}
            return jnp.mean(loss_fn(params, x, t, eps, train=True, rngs=rngs))

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, update_ema(ema, params, 0.9999), opt_state, key), value

    def init(params: Any) -> Any:
        return params, params, optimizer.init(params), jax.random.key(2)

    state = devices.jit(init, precision="default")(params)
    compiled, flops = compile_ours(step, state, x, donate=(0,))
    cell = [state]

    def call() -> None:
        cell[0], value = compiled(cell[0], x)
        jax.block_until_ready((cell[0], value))

    return Ours(call, flops)


def our_sample(case: Case, steps: int, name: str) -> Ours:
    """The compiled walk of a sampler."""
    network, params, _ = our_params(case)
    chain = respace(BETAS, uniform(TIMESTEPS, steps))
    process, sampler = Process(chain, EPS, FIXED_LARGE), SAMPLERS[name](levels_of(chain))
    denoise = make_denoise(apply_network(network), process, threshold=thresholds.clip)
    keys = jax.random.split(jax.random.key(0), case.batch)

    def draw(params: Any, keys: jax.Array) -> jax.Array:
        def bound(x_t: jax.Array, t: jax.Array) -> Any:
            return denoise(params, x_t, t)

        state = begin(sampler, keys, case.image_shape, recorded=0)
        return walk(sampler, bound, keys, state).x_t

    compiled, _ = compile_ours(draw, params, keys)
    return Ours(lambda: jax.block_until_ready(compiled(params, keys)), 0.0)


class Seconds(NamedTuple):
    """Of one call; the two far apart mean that something else used the machine."""

    median: float
    fastest: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.fastest:.3g}) s"


def time_in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Seconds]:
    """Seconds of each call, after one call of each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Seconds(statistics.median(v), min(v)) for name, v in seconds.items()}


def our_product() -> Ours:
    """A float32 matrix product large enough to be nothing but arithmetic."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n))
    product = devices.jit(jnp.dot, precision="default")
    return Ours(lambda: jax.block_until_ready(product(x, x)), 2.0 * n**3)


def hardware() -> str:
    """The device, by the name that it gives itself."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def run_case(part: str, case: Case, args: argparse.Namespace, sampler: str = "") -> str:
    """One row of the table."""
    ours = {
        "train": our_train,
        "forward": our_forward,
        "sample": lambda case: our_sample(case, args.steps, sampler),
    }[part](case)
    make = {
        "train": their_train,
        "forward": their_forward,
        "sample": lambda case, wrap: their_sample(case, wrap, args.steps, sampler),
    }[part]
    calls = {"ours": ours.call}
    notes = ""
    for mode in args.torch:
        try:
            call = make(case, torch.compile if mode == "compile" else lambda network: network)
            call()
            calls[mode] = call
        except Exception as error:  # whatever a compiler may raise: the row says so
            notes += f" (torch {mode}: {type(error).__name__}: {str(error).splitlines()[0][:80]})"
    product = our_product()
    seconds = time_in_turn({**calls, "product": product.call}, args.repeats)
    peak = product.flops / seconds.pop("product").fastest
    mine = seconds.pop("ours")
    theirs = [str(seconds.get(mode, "-")) for mode in args.torch]
    medians, minima = zip(*seconds.values(), strict=True) if seconds else ((), ())
    best = "-"
    if seconds:
        best = f"{min(medians) / mine.median:.2f} ({min(minima) / mine.fastest:.2f})"
    share = f"{ours.flops / mine.fastest / peak:.0%}" if ours.flops else "-"
    rate = f"{case.batch / mine.median:.4g}"
    cells = [
        f"{' '.join(filter(None, [part, sampler]))}: {case.label}{notes}",
        str(mine),
        *theirs,
        best,
        rate,
        share,
    ]
    return markdown.row(cells)


def numbers(text: str) -> list[int]:
    """Comma-separated integers."""
    return [int(word) for word in text.split(",")]


def words(text: str) -> list[str]:
    """A comma-separated list."""
    return text.split(",")


def parse_arguments() -> argparse.Namespace:
    """The command line; `--batch` has one entry, or one per width."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", type=words, default=["train", "forward", "sample"])
    parser.add_argument("--image_size", type=int, default=32, help="8 is the digits' network")
    parser.add_argument("--width", type=numbers, default=[32, 128])
    parser.add_argument("--batch", type=numbers, default=[64, 8])
    parser.add_argument("--dropout", type=float, default=0.1, help="of the train step, both sides")
    parser.add_argument("--steps", type=int, default=10, help="of the 1,000, when sampling")
    parser.add_argument(
        "--sampler", type=words, default=["ancestral"], help="ancestral, ddim, dpm_solver_pp"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torch", type=words, default=["eager"], help="eager, compile or both")
    args = parser.parse_args()
    if len(args.batch) == 1:
        args.batch *= len(args.width)
    if len(args.batch) != len(args.width):
        parser.error(f"--batch needs one entry or {len(args.width)}, one per width")
    for name, allowed in (
        ("part", ("train", "forward", "sample")),
        ("torch", ("eager", "compile")),
        ("sampler", ("ancestral", "ddim", "dpm_solver_pp")),
    ):
        unknown = set(getattr(args, name)) - set(allowed)
        if unknown:
            parser.error(f"--{name}={sorted(unknown)[0]} is not one of {', '.join(allowed)}")
    return args


def main() -> None:
    """Prints one Markdown table."""
    args = parse_arguments()
    if TORCH_DEVICE == "cuda":
        torch.set_float32_matmul_precision("high")
    versions = [
        f"{n} {importlib.metadata.version(n)}" for n in ("jax", "flax", "torch", "diffusers")
    ]
    print(
        f"{hardware()}; {', '.join(versions)}; torch on {TORCH_DEVICE}; median (fastest) of ",
        end="",
    )
    print(f"{args.repeats}; {args.steps} sampling steps\n")
    theirs = [f"torch {mode}" for mode in args.torch]
    heads = ["what", "ours", *theirs, "best torch / ours", "our images/s", "of peak"]
    print(markdown.head(heads))
    for width, batch in zip(args.width, args.batch, strict=True):
        for part in args.part:
            dropout = args.dropout if part == "train" else 0.0
            case = make_case(args.image_size, width, batch, dropout)
            for sampler in args.sampler if part == "sample" else [""]:
                print(run_case(part, case, args, sampler), flush=True)


if __name__ == "__main__":
    main()
