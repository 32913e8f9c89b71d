"""Every field of every config refuses what it may not hold, by name, before anything happens."""

import math
import pathlib
import re
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion import grids, losses, paths, samplers, schedules, spacings, thresholds
from diffusion.networks import AUTOENCODERS, NETWORKS
from diffusion.parameterizations import PARAMETERIZATIONS, WITH_OPTIONS
from diffusion.structs import Process
from diffusion.times import TIMES
from diffusion.vae import LIKELIHOODS
from diffusion.variances import VARIANCES
from experiments import build, devices, evaluate, hooks, images, lookup, modes, state
from experiments.configs import base, ranges, vae_digits
from experiments.configs.continuous import CONTINUOUS
from experiments.configs.ranges import FIELDS, Many, Range, Word
from experiments.data import emoji
from experiments.data.dataset import SPLITS
from experiments.data.datasets import DATASETS
from experiments.methods import diffusion as diffusion_method
from experiments.methods import latent
from experiments.methods.condition import TEXTS
from experiments.methods.latent import ENCODERS
from experiments.metrics import flow
from experiments.metrics.sample_store import PROTOCOLS
from experiments.optimizers import CLIPS, OPTIMIZERS
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.config import write_config
from tests.diffusion.networks import small
from tests.experiments import emoji_font
from tests.experiments.catalog import MAKERS, build_once, flat, get

CHOICES = MappingProxyType(
    {
        "data": DATASETS,
        "method": build.METHODS,
        "encoder": ENCODERS,
        "likelihood": LIKELIHOODS,
        "text": TEXTS,
        "schedule": schedules.BETAS,
        "path": paths.PATHS,
        "parameterization": WITH_OPTIONS,
        "loss": losses.LOSSES,
        "loss.weighting": losses.WEIGHTINGS,
        "loss.space": losses.SPACES,
        "timesteps": TIMES,
        "model": {**NETWORKS, **AUTOENCODERS},
        "optimizer": OPTIMIZERS,
        "clip": CLIPS,
        "sample.sampler": samplers.SAMPLERS,
        "sample.spacing": {**grids.GRIDS, **spacings.SPACINGS},
        "sample.threshold": thresholds.THRESHOLDS,
    }
)
SUPPLIED = {
    "model": diffusion_method.SUPPLIED,
    "text": ("num_classes", "tokenizer", "text"),
}
# What some entries need beside the keyword that is tried.
NEEDED = MappingProxyType(
    dict(num_timesteps=8, betas=(0.1, 0.2), path="here", image_size=8, learning_rate=1e-3)
)
NONSENSE = (
    *(math.nan, math.inf, -math.inf, -1, -1.0, 0, 0.0, 0.5, 1e30, 10**30, True, None),
    *("", "no such name", (), (0,), (-1,), (1e30,), (math.nan,), ("no such name",), {"no": "such"}),
)


def keywords(field: str) -> Iterator[tuple[str, str]]:
    """(name of a choice, its keyword), those of nested choices left out."""
    for name, entry in CHOICES[field].items():
        supplied = SUPPLIED.get(field, ())
        for keyword in lookup.keywords(entry, supplied):
            if f"{field}.{keyword}" not in CHOICES:
                yield name, keyword


def changed(config: ConfigDict, field: str, value: Any) -> ConfigDict:
    """A config with another value in a field that may be new, whatever type it had."""
    content = config.to_dict()
    *parents, last = field.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    section[last] = value
    return ConfigDict(content)


def config_of_words() -> dict[str, Any]:
    return dict(
        name="words", vocabulary="one two", length=4, width=8, depth=1, num_heads=2, dropout=0.1
    )


def small_model(name: str) -> dict[str, Any]:
    """config.model for any network or autoencoder, so small that it is soon traced."""
    known = lookup.keywords(CHOICES["model"][name], SUPPLIED["model"])
    model = {k: v for k, v in small.FIELDS.items() if k in known}
    conditional = {"class_conditional": False} if name in NETWORKS else {}
    return dict(name=name, **model, **conditional, dtype="float32")


CHAIN = schedules.from_betas([0.1, 0.2])
ON_A_CHAIN = Process(CHAIN, PARAMETERIZATIONS["eps"], VARIANCES["fixed_small"])


def of_paths_alone(section: str, keyword: str) -> bool:
    """Whether what has this keyword refuses a chain."""
    tried: Any = {"sample.sampler": paths.levels_of(CHAIN), "timesteps": ON_A_CHAIN}.get(section)
    for name, entry in CHOICES.get(section, {}).items():
        if keyword not in lookup.keywords(entry):
            continue
        if section == "sample.spacing":
            return name not in spacings.SPACINGS
        if tried is not None:
            try:
                entry(tried)
            except ValueError as refusal:
                return "continuous time" in str(refusal)
    return section == "path"


def config_with(field: str, folder: Callable[[str], Any]) -> ConfigDict:
    """A small config, with a choice that has the field for its keyword.

    Args:
        folder: finds "vae_run", the working directory of a VAE of the digits, and "emoji_dir",
            where emoji are prepared.
    """
    names = [name for name, keyword in keywords("model") if f"model.{keyword}" == field]
    of_a_vae = names and not set(names) & set(NETWORKS)
    if field.startswith(("method.", "likelihood.")) or of_a_vae:
        config = vae_digits.get_config()
        config.model = small_model((names or [config.model.name])[0])
        return config
    config = base.get_config()
    config.schedule = dict(name="linear", num_timesteps=8, beta_start=0.02, beta_end=0.8)
    section, _, keyword = field.rpartition(".")
    if of_paths_alone(section, keyword):
        CONTINUOUS["flow"].change(config)
        config.path.num_timesteps = 8
    usual = config.model.name
    config.model = small_model(usual if usual in names or not names else names[0])
    config.train.preview_num_steps = 0
    if section == "encoder":
        config.encoder = dict(
            name="vae", workdir=str(folder("vae_run")), identity="", shift=(), scale=()
        )
        config.sample.threshold, config.evaluate.clip_denoised = dict(name="none"), False
        return config
    if section == "text" or field in ("sample.prompts", "model.cross_attention_resolutions"):
        config.data = dict(name="emoji", data_dir=folder("emoji_dir"))
        config.text = config_of_words()
        return config
    found = (
        [name for name, other in keywords(section) if other == keyword]
        if section in CHOICES
        else []
    )
    if field in ("model.label_dropout", "sample.guidance_scale"):
        config.data.name, config.model.class_conditional = "digits", True
        config.model.label_dropout = 0.1
    if not found or section == "model":
        return config
    entry = CHOICES[section][found[0]]
    needed = {k: v for k, v in NEEDED.items() if k in lookup.keywords(entry)}
    needed |= {"num_timesteps": 8} if section == "path" else {}
    config = changed(config, section, dict(name=found[0], **needed))
    if field == "optimizer.final_learning_rate":
        config.optimizer.update(warmup_steps=0, cosine_steps=10)
    if config.loss.name == "hybrid":
        config.variance = dict(name="learned_range")
    return config


def run_checks(config: ConfigDict) -> None:
    """What the program does with a config before it reads data or compiles."""
    devices.initialize_distributed(config.distributed)
    build_once(config)


def test_every_field_and_every_keyword_of_a_choice_has_its_range() -> None:
    fields = {f"{field}.{keyword}" for field in CHOICES for _, keyword in keywords(field)}
    for config in (base.get_config(), get("digits", "flow"), *map(get, MAKERS)):
        fields |= set(flat(config.to_dict()))
    assert fields == set(FIELDS)


@pytest.fixture(scope="module")
def vae_run(
    tiny_vae: Callable[[], ConfigDict], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The run of a VAE that was not trained yet, its latents measured."""
    config, workdir, mesh = tiny_vae(), tmp_path_factory.mktemp("vae"), devices.make_mesh()
    experiment = build.build(config)
    write_config(workdir, config)
    with Checkpoints(workdir) as checkpoints:
        told = state.facts(experiment, experiment.open("train"))
        state.save(checkpoints, 1, state.fresh_state(experiment, mesh), told)
    latent.measure(str(workdir), experiment.dataset)
    return workdir


@pytest.fixture(scope="module")
def emoji_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the emoji of a small font are prepared."""
    folder = tmp_path_factory.mktemp("emoji")
    emoji.prepare(str(emoji_font.small(folder / "small.ttf")), str(folder))
    return str(folder)


def test_a_finite_number_may_be_negative_and_is_no_flag() -> None:
    rule = ranges.Finite()
    assert all(rule.refusal(number) is None for number in (-1, 0.5, 0, -3e38, np.float32(2)))
    wrong: tuple[Any, ...] = (math.nan, math.inf, -math.inf, True, "1", None, (1,), 1e39)
    assert all(rule.refusal(value) == "must be a finite number." for value in wrong)


@pytest.mark.parametrize("field", FIELDS)
def test_nonsense_is_refused_by_name_and_anything_else_builds(
    field: str, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    whole, allowed = config_with(field, request.getfixturevalue), []
    for value in NONSENSE:
        try:
            ranges.check(changed(whole, field, value))
            allowed.append(value)
        except ValueError as error:
            assert str(error).startswith(f"config.{field} = {value!r}"), error
    with jax.log_compiles(), caplog.at_level("DEBUG", logger="jax"):
        for value in allowed:
            try:
                run_checks(changed(whole, field, value))
            except ValueError as error:
                assert value == "no such name", (value, error)
                assert str(error).startswith(f"config.{field} = 'no such name'"), error
    compiled = [r.message for r in caplog.records if "Finished XLA compilation" in r.message]
    # float64 to float32, and a path's numbers, one operation at a time
    operations = [re.search(r"jit\((\w+)\)", message) for message in compiled]
    names = {found[1] if found else "?" for found in operations} - {"stage"}  # of a derivative
    assert all(hasattr(jax.lax, name) or hasattr(jnp, name) for name in names), names


@pytest.mark.parametrize("field", FIELDS)
def test_a_range_is_what_it_says(field: str) -> None:
    rule = FIELDS[field]
    rule = rule.each if isinstance(rule, Many) else rule
    if not isinstance(rule, Range):
        return
    below = min(-1, rule.least - 1)
    for number in (math.nan, math.inf, -math.inf, below, True, np.True_, None, "1", (1,)):
        assert rule.refusal(number) is not None
    step: Callable[[float, float], float] = math.nextafter
    if rule.whole:
        step = lambda number, towards: number + (1 if towards > number else -1)  # noqa: E731
        assert rule.refusal(float(rule.least)) is not None
    ends = ((rule.least, rule.above, -math.inf), (rule.most, rule.below, math.inf))
    for end, excluded, outwards in ends:
        inner = step(end, -outwards) if excluded else end
        assert rule.refusal(inner) is None
        outer = end if excluded else step(end, outwards)
        assert (rule.refusal(outer) is None) == bool(rule.zero and outer == 0)
    kind = np.int64 if rule.whole else np.float64
    assert rule.refusal(kind(inner)) is None
    text = rule.refusal("x") or ""
    assert f"{rule.least:,}" in text if rule.whole else f"{rule.least:g}" in text
    assert rule.zero in text


def test_words_are_those_that_the_program_knows() -> None:
    known: dict[str, Any] = {
        "evaluate.metrics": evaluate.METRICS,
        "evaluate.ode_dequantization": flow.DEQUANTIZATIONS,
        "evaluate.split": SPLITS,
        "evaluate.protocol": ("custom", *PROTOCOLS),
        "evaluate.quantize": images.QUANTIZE,
        "train.validate_with": hooks.VALIDATIONS,
        "train.finish_with": [mode for mode in modes.CHECKS if mode != "train"],
        "precision": devices.PRECISIONS,
    }
    for field, names in known.items():
        rule = FIELDS[field]
        rule = rule.each if isinstance(rule, Many) else rule
        assert isinstance(rule, Word) and set(rule.names) == set(names), field


def test_one_wrong_word_of_several_is_named() -> None:
    config = base.get_config()
    config.evaluate.metrics = "bpd, chain"
    ranges.check(config)
    config.evaluate.metrics = "bpd, chian"
    with pytest.raises(ValueError, match="names 'chian', which is not known. Did you mean 'chain'"):
        ranges.check(config)
    config.evaluate.metrics, config.train.finish_with = "bpd", ("sample", 2)
    with pytest.raises(ValueError, match=r"finish_with = \('sample', 2\) holds 2, which must be a"):
        ranges.check(config)


def test_a_section_is_no_number() -> None:
    for section in ("clip", "loss.weighting", "train", "sample.sampler"):
        config = changed(base.get_config(), section, 3)
        with pytest.raises(ValueError, match=f"^config.{section} = 3 must be a dict of fields"):
            ranges.check(config)


def test_a_long_value_is_cut_short() -> None:
    betas = (0.25,) * 1000 + (2.0,)
    config = changed(base.get_config(), "schedule", dict(name="array", betas=betas))
    with pytest.raises(ValueError, match=r"^config.schedule.betas = .*\.\.\. holds 2.0") as error:
        ranges.check(config)
    assert len(str(error.value)) < 400


def test_ranges_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*arguments: Any) -> None:
        raise AssertionError("a name was looked up before the ranges were checked")

    monkeypatch.setattr(build, "lookup", too_late)
    config = base.get_config()
    config.evaluate.num_sets = 0
    with pytest.raises(ValueError, match=r"^config.evaluate.num_sets = 0 must be an integer"):
        build.build(config)


@pytest.mark.parametrize("field", ["b1", "b2"])
def test_a_decay_that_is_1_in_float32_is_refused(field: str) -> None:
    """Adam's bias correction would be 0, and no update would ever do anything."""
    config = base.get_config()
    config.optimizer[field] = 1 - 1e-9
    with pytest.raises(ValueError, match=rf"config\.optimizer\.{field} = 0\.999999999 must be"):
        ranges.check(config)
