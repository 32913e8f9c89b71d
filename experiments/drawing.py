"""Drawing samples: the compiled functions behind --mode=sample, previews, metrics and figures."""

import contextlib
import functools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion import random
from experiments import console, devices, images
from experiments.data.captions import (
    captions_of_split,
    prompt_remarks,
    prompt_rows,
    shown,
    split_prompts,
    stands_for_split,
)
from experiments.data.emoji_names import spelled
from experiments.experiment import Experiment
from experiments.methods.method import Method, dtype_of
from experiments.workdir.origin import Origin

Arrays = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # the fields of `Drawn`
SampleFn = Callable[..., Arrays]
NAMED = 10  # classes at most that an error names
PARTS = 25  # of a drawing, between which it can say how far it is


class Drawn(NamedTuple):
    """Samples on the host, in 0..255.

    What is not finite is drawn grey where it is no number, and says so in `finite`.
    """

    samples: np.ndarray  # [B, H, W, C]
    progress: np.ndarray  # [K, B, H, W, C], estimates of x_0 on the way
    finite: np.ndarray  # bool[B], whether sample and progress were numbers throughout
    evaluations: np.ndarray  # i32[B], of the denoiser behind each sample

    @property
    def not_finite(self) -> int:
        """How many are not."""
        return int((~self.finite).sum())

    def warn(self) -> None:
        """Says that there are some."""
        if self.not_finite:
            console.log(
                f"WARNING   {self.not_finite} of {len(self.finite)} samples are not finite; what "
                "is no number in them is drawn grey."
            )


def requested_labels(
    labels: str | Sequence[str | int], method: Method, names: Sequence[str] = ()
) -> np.ndarray:
    """The classes that samples 0, 1, ... get, in turn: i32[K].

    Args:
        labels: of config.sample: "all", every class in turn; "none", no class in particular; or
            classes by name or number, in one text separated by commas, or by ; where there is one.
            #3 is number 3 whatever is called so.
        names: of the classes, by number.

    Raises:
        ValueError: for anything else, a class that is not there, and any wish where the method
            heeds none.
    """
    count = method.num_classes
    if labels == "all":
        return np.arange(max(count, 1), dtype=np.int32)
    if not count:
        raise ValueError(
            f"config.sample.labels = {labels!r} asks for classes, and this model knows none: leave "
            "it 'all', or train with config.model.class_conditional = True."
        )
    if labels == "none":
        if method.null_class:
            return np.array([count], np.int32)
        raise ValueError(
            "config.sample.labels = 'none' needs a model that was also trained without labels "
            "(config.model.label_dropout above 0)."
        )
    numbers = {unicodedata.normalize("NFC", name): i for i, name in enumerate(names)}
    words = _words(labels, numbers) if isinstance(labels, str) else labels
    found = [_number(word, numbers, count) for word in words]
    if None in found:
        named = f", or names such as {', '.join(names[:NAMED])}" if names else ""
        raise ValueError(
            f"config.sample.labels = {labels!r} must be 'all', 'none', or classes from 0 to "
            f"{count - 1}{named}; several separated by commas."
        )
    return np.array(found, np.int32)


def _words(text: str, numbers: Mapping[str, int]) -> list[str]:
    """The classes that a text lists, in brackets or not; a text that is one's name is that."""
    text = unicodedata.normalize("NFC", text.strip())
    if text in numbers:
        return [text]
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    separator = ";" if ";" in text else ","
    return [word.strip() for word in text.rstrip(f"{separator} ").split(separator)]


def _number(word: str | int, numbers: Mapping[str, int], count: int) -> int | None:
    """Of the class of that name or number; None where there is none."""
    digits = str(word).removeprefix("#")
    number = int(digits) if digits.isdecimal() and int(digits) < count else None
    named = numbers.get(word) if isinstance(word, str) else None
    if named is None or number is None or named == number:
        return number if named is None else named
    raise ValueError(
        f"config.sample.labels asks for {word!r}, which is the name of class {named} and the "
        f"number of another: write #{named} or #{number}."
    )


def prompts_of(experiment: Experiment) -> list[str]:
    """The prompts of config.sample, of which sample i gets number i mod their count; "" is none.

    "@train" and "@test" stand for the captions of a split. Emoji are spelled out.

    Raises:
        ValueError: for a method that heeds none, and for none where the method was not trained
            without.
        FileNotFoundError: where a split's captions are asked for, and it is missing.
    """
    wanted, method = experiment.config.sample.prompts, experiment.method
    if method.tokenizer is None:
        raise ValueError(
            f"config.sample.prompts = {shown(wanted)!r} asks in words, and this model knows "
            "none: leave it empty, or train with config.text (experiments/configs/text_emoji.py)."
        )
    if stands_for_split(wanted):
        return captions_of_split(experiment.dataset, wanted)
    if not wanted and not method.null_class:
        raise ValueError(
            "config.sample.prompts is empty, and this model was trained with captions only "
            "(config.text.dropout = 0): say what it shall draw, such as 'red apple,smiling cat'."
        )
    return split_prompts(wanted) or [wanted]


def remarks_on_prompts(experiment: Experiment) -> list[str]:
    """Lines for the user: which words of config.sample.prompts the model is not told.

    Of the captions of a split, which nobody typed, they say how many have no known word.
    """
    asked, tokenizer = experiment.config.sample.prompts, experiment.method.tokenizer
    if tokenizer is None or not asked:
        return []
    if not stands_for_split(asked):
        return prompt_remarks(tokenizer, prompts_of(experiment))
    with contextlib.suppress(OSError, ValueError):  # who draws them says what is missing
        rows = tokenizer.rows(prompts_of(experiment))
        wordless = int((rows == tokenizer.nothing(1)).all(axis=1).sum())
        if wordless:
            return [
                f"WARNING   {wordless:,} of {len(rows):,} captions of {asked.strip()} have no word "
                "that the model knows: they are drawn as without a caption"
            ]
    return []


def example_prompt(experiment: Experiment) -> str:
    """A caption of the train split that `split_prompts` leaves whole, or a word that is known."""
    source: Any = experiment.dataset.open("train")
    texts = (source.text(index) for index in range(len(source)))
    whole = (text for text in texts if split_prompts(text) == [text] and text[0] != "@")
    assert experiment.method.tokenizer is not None
    return next(whole, next(iter(experiment.method.tokenizer.words)))


def asked_for(experiment: Experiment) -> dict[str, str]:
    """The fields of a protocol that say what samples were asked for."""
    config = experiment.config.sample
    if not experiment.method.tokenizer:
        return {"labels": config.labels}
    # Older samples of such a text were of its other words, or of none.
    emoji = {} if spelled(config.prompts) == config.prompts else {"emoji": "names"}
    return {"labels": config.labels, "prompts": config.prompts} | emoji


def sampling_protocol(experiment: Experiment, step: int, origin: Origin) -> dict[str, Any]:
    """All that samples depend on, but for the values of the parameters and how it is rounded."""
    config = experiment.config
    return {
        "dataset": experiment.dataset.name,
        **origin._asdict(),
        "checkpoint": config.checkpoint,
        "checkpoint_step": step,
        **experiment.method.protocol,
        "num_steps": steps_taken(experiment, config.sample.num_steps),
        **asked_for(experiment),
        "precision": config.precision,
        "dtype": dtype_of(config),
        "seed": config.seed,
    }


def requested(experiment: Experiment) -> np.ndarray:
    """What samples 0, 1, ... are asked for, in turn: classes i32[K], or captions i32[K, length].

    Raises:
        ValueError: as `requested_labels`, `prompts_of` and `captions.prompt_rows`.
    """
    method, config = experiment.method, experiment.config.sample
    labels = requested_labels(config.labels, method, experiment.dataset.classes)
    if method.tokenizer is None and not config.prompts:
        return labels
    prompts = prompts_of(experiment)
    assert method.tokenizer is not None  # or there are no prompts
    if stands_for_split(config.prompts):  # of whose captions some may have no known word
        return method.tokenizer.rows(prompts)
    return prompt_rows(method.tokenizer, prompts)


def parts_of(num_steps: int) -> list[np.ndarray]:
    """The falling steps in at most PARTS parts, each of several steps, of one length if possible.

    Every length is compiled, and a loop of a single step would be compiled to other roundings.
    """
    falling = np.arange(num_steps, dtype=np.int32)[::-1]
    most = max(1, min(PARTS, num_steps // 2))
    even = [count for count in range(1, most + 1) if num_steps % count == 0]
    return np.array_split(falling, even[-1] if 2 * even[-1] >= most else most)


def compile_sampling(
    experiment: Experiment,
    mesh: Mesh,
    *,
    num_steps: int,
    record: tuple[int, ...] = (),
    quantize: str = "round",
) -> SampleFn:
    """(params, indices i32[B], seed u32[], labels i32[K, ...]) -> the fields of `Drawn`.

    On the devices, B cut over them. Sample i is a function of (seed, i) and labels[i mod K]. A
    batch that does not fit the memory of the devices is drawn in halves, one after the other. With
    the keyword `each`, that is called when each of the parts of `parts_of` is done, with the number
    of its steps; else nothing is waited for.

    Args:
        num_steps: of sampling; 0 is the method's own number, every timestep of a chain.
        record: steps, counted down to 0, whose estimates of x_0 are returned.
        quantize: a key of images.QUANTIZE; uint8 but for "none".
    """
    sampling, decode = experiment.method.sampling(num_steps, record), experiment.encoder.decode
    to_pixels = functools.partial(
        images.QUANTIZE[quantize], num_levels=experiment.dataset.num_levels
    )

    def pixels(x: jax.Array) -> jax.Array:
        return to_pixels(decode(jnp.where(jnp.isnan(x), 0.0, x)))

    def begin(params: Any, indices: jax.Array, seed: jax.Array, labels: jax.Array) -> Any:
        keys = random.per_index(random.stream(seed, "sample"), indices)
        wanted = labels[indices % len(labels)]
        return keys, wanted, sampling.begin(params, keys, wanted)

    def end(state: Any) -> Arrays:
        drawn = sampling.end(state)
        axes = tuple(range(1, drawn.x_0.ndim))
        finite = jnp.isfinite(drawn.x_0).all(axes)
        finite &= jnp.isfinite(drawn.progress).all((0, *(axis + 1 for axis in axes)))
        progress = pixels(drawn.progress.reshape(-1, *drawn.x_0.shape[1:]))
        shape = (len(record), len(drawn.x_0), *progress.shape[1:])
        return pixels(drawn.x_0), progress.reshape(shape), finite, drawn.evaluations

    everywhere, by_example = devices.replicated(mesh), devices.sharded(mesh)
    compiled = functools.partial(devices.jit, precision=experiment.config.precision)
    first = compiled(
        begin,
        in_shardings=(everywhere, by_example, everywhere, everywhere),
        out_shardings=by_example,
    )
    advance = devices.Executables(
        compiled(
            sampling.advance,
            in_shardings=(everywhere, by_example, by_example, by_example, everywhere),
            out_shardings=by_example,
            donate_argnums=3,
        )
    )
    last = compiled(end, in_shardings=(by_example,), out_shardings=everywhere)

    def whole(params: Any, indices: jax.Array, *inputs: Any, each: Any) -> Arrays:
        keys, wanted, state = first(params, indices, *inputs)
        for steps in parts_of(sampling.num_steps):
            state = advance(params, keys, wanted, state, steps)
            if each is not None:
                jax.block_until_ready(state)
                each(len(steps))
        drawn: Arrays = last(state)
        return drawn

    def sample(
        params: Any,
        indices: jax.Array,
        *inputs: Any,
        each: Callable[[int], None] | None = None,
    ) -> Arrays:
        try:
            return whole(params, indices, *inputs, each=each)
        except devices.OutOfMemory as error:
            half = devices.round_up(-(-len(indices) // 2), mesh)
            if half >= len(indices):
                raise
            console.log(f"memory    {error}: {half} at a time")
            halves = devices.split(indices, half, mesh)
        found = [sample(params, halves[0], *inputs), sample(params, halves[1], *inputs, each=each)]
        return devices.joined(found, (0, 1, 0, 0), mesh)

    return sample


def make_sample_fn(experiment: Experiment, mesh: Mesh, **options: Any) -> SampleFn:
    """`compile_sampling` for the seed and the labels of the config: (params, indices i32[B])."""
    compiled = compile_sampling(experiment, mesh, **options)
    labels = requested(experiment)
    seed = np.uint32(experiment.config.seed)
    return lambda params, indices, **each: compiled(params, indices, seed, labels, **each)


def draw_indices(
    sample_fn: SampleFn, params: Any, indices: Sequence[int], size: int, mesh: Mesh, **each: Any
) -> Drawn:
    """At most `size` samples of any indices, in a batch of `size`, on the host."""
    padded = np.resize(np.asarray(indices, np.int32), size)
    placed = devices.put_global(padded, devices.sharded(mesh))
    found = devices.fetch(sample_fn(params, placed, **each))
    samples, progress, finite, evaluations = found
    n = len(indices)
    return Drawn(samples[:n], progress[:, :n], finite[:n], evaluations[:n])


def draw(
    sample_fn: SampleFn,
    params: Any,
    start: int,
    stop: int,
    batch_size: int,
    mesh: Mesh,
    **each: Any,
) -> Drawn:
    """Samples start .. stop - 1 with their progress, in batches of one size, on the host.

    **each: as for `compile_sampling`.
    """
    parts = []
    for first in range(start, stop, batch_size):
        indices = np.arange(first, first + batch_size, dtype=np.int32)
        indices = devices.put_global(indices, devices.sharded(mesh))
        parts.append(devices.fetch(sample_fn(params, indices, **each)))
    samples, progress, finite, evaluations = zip(*parts, strict=True)
    count = stop - start
    return Drawn(
        np.concatenate(samples)[:count],
        np.concatenate(progress, axis=1)[:, :count],
        np.concatenate(finite)[:count],
        np.concatenate(evaluations)[:count],
    )


def steps_taken(experiment: Experiment, num_steps: int) -> int:
    """How many steps sampling takes where a config asks for `num_steps`, 0 among them."""
    return experiment.method.sampling(num_steps, ()).num_steps
