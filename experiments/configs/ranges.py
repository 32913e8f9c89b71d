"""What every field of `base.py` may hold: ranges of numbers, and words that name no code.

The keywords of a named choice stand under the field that holds the choice: `clip.max_norm`. A field
without an entry is a keyword of a choice of one's own, and its function's to judge. The upper ends
of sizes are generous: beyond them int32 or any machine's memory overflows. What relates two fields,
or a field and the data, is checked where both are known.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict

from experiments.lookup import suggestion

FLOAT32_MAX = 3.4028234e38
STEPS = 10**9  # of training: they are counted in int32
TIMESTEPS = 100_000  # of the chain
IMAGES = 10**7  # of a split, or drawn
BATCH = 10**6  # images at a time
SIDE = 8192  # pixels of an image
CHANNELS = 16_384  # of a level of the network
LONGEST = 200  # letters of a value in a message


class Rule(Protocol):
    """What a field may hold."""

    def refusal(self, value: Any) -> str | None:
        """What follows "config.FIELD = VALUE" in the error, or None for a value that may be."""


class Range(NamedTuple):
    """Finite numbers from `least` to `most`; a boolean is none.

    least, most: themselves allowed unless `above` or `below` excludes them.
    whole: integers only.
    zero: what 0 means where it is allowed beside the range.
    meaning: of the number, where its name may mislead.
    """

    least: float
    most: float
    whole: bool = True
    above: bool = False
    below: bool = False
    zero: str = ""
    meaning: str = ""

    def refusal(self, value: Any) -> str | None:
        if isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool):
            number: Any = value
            if not self.whole and isinstance(value, Integral) and abs(number) >= 2**31:
                return f"is too large for an integer: write it as {number:g}, in floating point."
            low = number > self.least if self.above else number >= self.least
            high = number < self.most if self.below else number <= self.most
            if (low and high) or (self.zero and number == 0):
                return None
        show = "{:,}".format if self.whole else "{:g}".format
        return (
            f"must be {'an integer' if self.whole else 'a number'} "
            f"{'above' if self.above else 'of at least'} {show(self.least)} and "
            f"{'below' if self.below else 'at most'} {show(self.most)}"
            f"{f', or 0 ({self.zero})' if self.zero else ''}"
            f"{f', {self.meaning}' if self.meaning else ''}."
        )


class Finite(NamedTuple):
    """Any finite number; a boolean is none."""

    def refusal(self, value: Any) -> str | None:
        number = isinstance(value, Real) and not isinstance(value, bool)
        if number and abs(float(value)) <= FLOAT32_MAX:
            return None
        return "must be a finite number."


class Flag(NamedTuple):
    """True or False."""

    def refusal(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "must be True or False."


class Text(NamedTuple):
    """A string; a name among them is looked up, and refused, where its table is."""

    empty: bool = False  # may be ""
    none: bool = False  # may be None

    def refusal(self, value: Any) -> str | None:
        if (isinstance(value, str) and (value or self.empty)) or (value is None and self.none):
            return None
        return f"must be a{'' if self.empty else ' non-empty'} string{' or None' * self.none}."


class Word(NamedTuple):
    """One of `names`, or several of them in one string."""

    names: tuple[str, ...]
    several: bool = False  # separated by commas
    within: Mapping[str, str] = MappingProxyType({})  # what others call a part of one of them

    def refusal(self, value: Any) -> str | None:
        if not isinstance(value, str):
            return f"must be a string. {suggestion(value, self.names)}"
        for word in value.split(",") if self.several else (value,):
            name = word.strip() if self.several else word
            if name not in self.names:
                which = "" if name == value else f"names {name!r}, which "
                if name in self.within:
                    return f"{which}is part of {self.within[name]!r}: choose that."
                return f"{which}is not known. {suggestion(name, self.names)}"
        return None


class Many(NamedTuple):
    """A tuple of at most `most` values that `each` allows."""

    each: Rule
    least: int = 0
    most: int = 100
    none: bool = False  # may be None

    def refusal(self, value: Any) -> str | None:
        if value is None and self.none:
            return None
        if not isinstance(value, tuple | list) or not self.least <= len(value) <= self.most:
            return f"must be a tuple of {self.least} to {self.most:,} values."
        for item in value:
            if refusal := self.each.refusal(item):
                return f"holds {item!r}, which {refusal}"
        return None


class Ends(NamedTuple):
    """Two unlike finite numbers, or ()."""

    def refusal(self, value: Any) -> str | None:
        pair = isinstance(value, tuple | list) and len(value) in (0, 2)
        if pair and not any(map(Finite().refusal, value)) and len(set(value)) == len(value):
            return None
        return "must be two unlike numbers, such as (0, 4095), or ()."


POSITIVE = Range(0, FLOAT32_MAX, whole=False, above=True)
BETA = Range(0, 1, whole=False, above=True)  # only the last beta may be 1
DECAY = Range(0, 1, whole=False, below=True)
MOMENT = Range(0, 1 - 1e-6, whole=False)  # nearer to 1 float32 has no bias correction left
FRACTION = Range(0, 1, whole=False, below=True)
FIELDS: MappingProxyType[str, Rule] = MappingProxyType(
    {
        "seed": Range(0, 2**32 - 1),
        "distributed": Text(),
        "mesh.data": Range(1, 2**20, zero="what is left"),
        "mesh.fsdp": Range(1, 2**20, zero="what is left"),
        "checkpoint": Word(("latest", "best")),
        "precision": Word(("default", "high", "highest")),
        "method.name": Text(),
        "method.kl_weight": Range(0, FLOAT32_MAX, whole=False),
        "method.kl_warmup_steps": Range(1, STEPS, zero="none"),
        "encoder.name": Text(),
        "encoder.workdir": Text(),
        "encoder.checkpoint": Range(1, STEPS, zero="the newest"),
        "encoder.identity": Text(empty=True),
        "encoder.shift": Many(Finite(), most=CHANNELS),
        "encoder.scale": Many(POSITIVE, most=CHANNELS),
        "likelihood.name": Text(),
        "likelihood.deviation": Range(0, FLOAT32_MAX, whole=False, above=True, zero="learned"),
        "text.name": Text(),
        "text.vocabulary": Text(none=True),
        "text.length": Range(2, 1024),
        "text.width": Range(1, CHANNELS),
        "text.depth": Range(0, 100),
        "text.num_heads": Range(1, CHANNELS),
        "text.dropout": FRACTION,
        "data.name": Text(),
        "data.data_dir": Text(empty=True, none=True),
        "data.pad_to": Range(28, SIDE),
        "data.path": Text(empty=True),  # named when the data are needed
        "data.image_size": Range(1, SIDE, meaning="the side of a square in pixels"),
        "data.test_fraction": FRACTION,
        "data.channels": Range(1, 3),
        "data.background": Text(),
        "data.value_range": Ends(),
        "data.num_classes": Range(2, 100_000, zero="no labels"),
        "data.classes": Many(Text(empty=True), most=100_000, none=True),
        "loader.in_memory": Flag(),
        "loader.num_workers": Range(1, 1024, zero="read in threads"),
        "loader.num_threads": Range(1, 1024, zero="read when asked"),
        "loader.prefetch": Range(1, 10_000, zero="none ahead"),
        "path.name": Text(),
        "path.num_timesteps": Range(2, TIMESTEPS),
        "path.start": Range(0, 1, whole=False, above=True, below=True),
        "path.noise_min": Range(0, 1, whole=False, above=True),
        "path.noise_max": Range(1, 1e6, whole=False, above=True),
        "path.log_snr_min": Range(-40, 0, whole=False),
        "path.log_snr_max": Range(0, 40, whole=False, above=True),
        "path.beta_min": Range(0, 1, whole=False, above=True),
        "path.beta_max": Range(1, 100, whole=False, above=True),
        "schedule.name": Text(),
        "schedule.num_timesteps": Range(1, TIMESTEPS),
        "schedule.beta_start": BETA,
        "schedule.beta_end": BETA,
        "schedule.beta": BETA,
        "schedule.betas": Many(BETA, least=1, most=TIMESTEPS),
        "schedule.offset": Range(0, 1, whole=False),
        "schedule.beta_max": BETA,
        "parameterization.name": Text(),
        "parameterization.sigma_data": Range(0, 1000, whole=False, above=True),
        "variance.name": Text(),
        "loss.name": Text(),
        "loss.scale": POSITIVE,
        "loss.vlb_coefficient": POSITIVE,
        "loss.weighting.name": Text(),
        "loss.weighting.gamma": POSITIVE,
        "loss.space.name": Text(),
        "timesteps.name": Text(),
        "timesteps.history": Range(1, 10_000),
        "timesteps.parts": Range(1, 10_000),
        "timesteps.uniform_share": Range(0, 1, whole=False, above=True),
        "timesteps.mean": Range(-20, 20, whole=False),
        "timesteps.std": Range(0, 100, whole=False, above=True),
        "timesteps.shift": POSITIVE,
        "timesteps.weigh": Flag(),
        "model.name": Text(),
        "model.channels": Range(4, CHANNELS),
        "model.channel_multipliers": Many(Range(1, 64), least=1),
        "model.num_blocks": Range(1, 64),
        "model.attention_resolutions": Many(Range(1, SIDE)),
        "model.cross_attention_resolutions": Many(Range(1, SIDE)),
        "model.latent_channels": Range(1, CHANNELS),
        "model.hidden_sizes": Many(Range(1, CHANNELS), least=1),
        "model.latent_size": Range(1, CHANNELS),
        "model.dropout": FRACTION,
        "model.num_heads": Range(1, CHANNELS),
        "model.attention_head_dim": Range(1, CHANNELS, zero="num_heads heads"),
        "model.norm_groups": Range(1, CHANNELS),
        "model.norm_eps": Range(0, 1, whole=False, above=True),
        "model.flip_sin_to_cos": Flag(),
        "model.freq_shift": Range(0, CHANNELS),
        "model.downsample_padding": Range(0, 1),
        "model.fourier_features": Many(Range(0, 16), most=16),
        "model.patch_size": Range(1, SIDE),
        "model.hidden_size": Range(4, CHANNELS),
        "model.depth": Range(1, 1000),
        "model.mlp_ratio": Range(0, 64, whole=False, above=True),
        "model.class_conditional": Flag(),
        "model.label_dropout": FRACTION,
        "model.remat": Flag(),
        "model.dtype": Text(),
        "optimizer.name": Text(),
        "optimizer.learning_rate": POSITIVE,
        "optimizer.warmup_steps": Range(1, STEPS, zero="none"),
        "optimizer.cosine_steps": Range(1, STEPS, zero="the rate stays"),
        "optimizer.final_learning_rate": Range(0, FLOAT32_MAX, whole=False),
        "optimizer.weight_decay": Range(0, FLOAT32_MAX, whole=False),
        "optimizer.b1": MOMENT,
        "optimizer.b2": MOMENT,
        "optimizer.eps": POSITIVE,
        "optimizer.epsilon_hat": Flag(),
        "optimizer.decay": MOMENT,
        "optimizer.momentum": DECAY,
        "clip.name": Text(),
        "clip.max_norm": POSITIVE,
        "clip.num_cores": Range(1, BATCH),
        "ema_decay": DECAY,
        "ema_warmup": Range(0, 10, whole=False, above=True, zero="none"),
        "train.batch_size": Range(1, BATCH),
        "train.accumulate_steps": Range(1, BATCH),
        "train.num_steps": Range(1, STEPS),
        "train.balance": Word(("images", "labels", "subjects")),
        "train.flip": Flag(),
        "train.steps_per_call": Range(1, 10_000),
        "train.log_every": Range(1, STEPS),
        "train.preview_every": Range(1, STEPS, zero="never"),
        "train.preview_images": Range(1, 10_000),
        "train.preview_num_steps": Range(1, TIMESTEPS, zero="every timestep"),
        "train.validate_every": Range(1, STEPS, zero="never"),
        "train.validate_with": Word(("bpd_fast", "samples")),
        "train.validate_images": Range(2, IMAGES),  # a distance needs 2
        "train.checkpoint_every": Range(1, STEPS),
        "train.keep_checkpoints": Range(1, 10_000),
        "train.keep_every": Range(1, STEPS, zero="none for good"),
        "train.diverged_above": Range(0, FLOAT32_MAX, whole=False, above=True, zero="no bound"),
        "train.diverged_for": Range(1, STEPS, zero="at once"),
        "train.finish_with": Many(Word(("sample", "evaluate", "figures"))),
        "sample.sampler.name": Text(),
        "sample.labels": Text(),
        "sample.prompts": Text(empty=True),
        "sample.num_steps": Range(1, TIMESTEPS, zero="every timestep"),
        "sample.sampler.eta": Range(0, 1, whole=False),
        "sample.sampler.order": Range(1, 3),
        "sample.sampler.tolerance": Range(1e-7, 1, whole=False, below=True),
        "sample.sampler.max_steps": Range(1, 10**6),
        "sample.sampler.steps_per_level": Range(1, 10_000),
        "sample.sampler.corrector_steps": Range(1, 10_000),
        "sample.sampler.step_size": Range(0, 1, whole=False, above=True, below=True),
        "sample.sampler.churn": Range(0, FLOAT32_MAX, whole=False),
        "sample.sampler.churn_min": Range(0, 1, whole=False),
        "sample.sampler.churn_max": Range(1, FLOAT32_MAX, whole=False),
        "sample.sampler.churn_noise": Range(0, 10, whole=False),
        "sample.spacing.name": Text(),
        "sample.spacing.share": Range(0, 1, whole=False, above=True),
        "sample.spacing.offset": Range(0, TIMESTEPS),
        "sample.spacing.rho": Range(0, 1000, whole=False, above=True),
        "sample.spacing.timesteps": Many(Range(0, TIMESTEPS), least=1, most=TIMESTEPS),
        "sample.threshold.name": Text(),
        "sample.threshold.quantile": Range(0, 1, whole=False, above=True),
        "sample.threshold.most": Range(1, FLOAT32_MAX, whole=False),
        "sample.guidance_scale": Range(0, 1000, whole=False),
        "sample.guidance_interval": Many(Range(0, TIMESTEPS, whole=False), most=2),
        "sample.num_images": Range(1, IMAGES),
        "sample.batch_size": Range(1, BATCH),
        "sample.format": Word(("npz", "png")),
        "sample.images_per_file": Range(1, IMAGES),
        "sample.progress_images": Range(1, 1000),
        "sample.progress_columns": Range(1, 1000),
        "train.log_to": Word(("", "tensorboard", "wandb"), several=True),
        "evaluate.metrics": Word(
            (
                *("bpd", "bpd_fast", "bpd_continuous", "baselines", "ode", "samples", "chain"),
                *("elbo", "latent_bound"),
            ),
            several=True,
            within=dict.fromkeys(("fid", "is", "kid", "precision", "recall"), "samples")
            | {"nll": "bpd", "bits_per_dim": "bpd"}
            | {"iwae": "elbo", "active_units": "elbo", "psnr": "elbo"},
        ),
        "evaluate.split": Word(("train", "test")),
        "evaluate.num_images": Range(1, IMAGES, zero="all"),
        "evaluate.batch_size": Range(1, BATCH),
        "evaluate.clip_denoised": Flag(),
        "evaluate.decoder": Text(),
        "evaluate.num_draws": Range(1, 10_000),
        "evaluate.timesteps_per_call": Range(1, TIMESTEPS),
        "evaluate.timesteps_at_once": Range(1, TIMESTEPS),
        "evaluate.num_importance": Range(1, 10**6),
        "evaluate.num_strata": Range(1, TIMESTEPS),
        "evaluate.ode_tolerance": Range(0, 1, whole=False, above=True, below=True),
        "evaluate.ode_probes": Range(1, 10_000),
        "evaluate.ode_max_steps": Range(1, 10**6),
        "evaluate.ode_dequantization": Word(("uniform", "decoder")),
        "evaluate.extractor": Word(("auto", "inception", "classifier")),
        "evaluate.inception_weights": Text(none=True),
        "evaluate.reference": Text(none=True),
        "evaluate.protocol": Word(("custom", "paper", "repository", "edm")),
        "evaluate.num_samples": Range(4, IMAGES),  # precision and recall need 4
        "evaluate.quantize": Word(("round", "floor", "none")),
        "evaluate.num_splits": Range(1, IMAGES),
        "evaluate.num_sets": Range(1, 100),
        "evaluate.drop": Range(1, IMAGES),
        "evaluate.chain_points": Range(1, TIMESTEPS),
        "figures.names": Text(),
        "figures.rows": Range(1, 100),
        "figures.columns": Range(2, 100),
        "figures.num_samples": Range(4, IMAGES),
        "figures.resamplings": Range(1, 1000),
    }
)
SECTIONS = frozenset(name.rpartition(".")[0] for name in FIELDS)


def _check(section: Mapping[str, Any], path: str) -> None:
    for name, value in section.items():
        field = f"{path}{name}"
        refusal = None
        if field in FIELDS:
            refusal = FIELDS[field].refusal(value)
        elif isinstance(value, Mapping):
            _check(value, f"{field}.")
        elif field in SECTIONS:
            refusal = "must be a dict of fields, as in experiments/configs/base.py."
        if refusal:
            shown = repr(value)
            shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
            raise ValueError(f"config.{field} = {shown} {refusal}")


def check(config: ConfigDict) -> None:
    """Refuses a config in which a field holds what it may not, in any mode of the program.

    Raises:
        ValueError: naming the field, what came and what is allowed.
    """
    _check(config.to_dict(), "")
