"""A field of the config that changes a number is told by the number's protocol."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import build as builder
from experiments import evaluate, lookup
from experiments.build import build
from experiments.configs.ranges import FIELDS, Flag, Many, Range, Word
from experiments.drawing import draw, make_sample_fn
from experiments.methods.method import DTYPES
from experiments.metrics import bound, sample_store
from experiments.metrics.metric import Context
from experiments.workdir.config import check_same_model, config_to_dict
from experiments.workdir.origin import EMA, NOTHING, Loaded, Origin
from tests.experiments.catalog import flat
from tests.experiments.configs import test_choices
from tests.experiments.configs.test_ranges import SUPPLIED, changed

# Tables of words that name code, beside those of choices with keywords.
WORDS = {"model.dtype": DTYPES, "evaluate.decoder": ("tanh", "exact")}
METRICS = ("bpd_fast", "baselines", "samples")  # the cheap ones
# Of this model no other value may be tried: what its parameters are of, which a checkpoint refuses
# to be without; words of captions and classes, which it has not; and paths.
FIXED = {
    *("data.name", "encoder.name", "method.name", "text.name", "parameterization.name"),
    *("schedule.name", "schedule.num_timesteps", "schedule.beta_start", "schedule.beta_end"),
    *("model.name", "model.channels", "model.class_conditional", "model.label_dropout"),
    *("sample.guidance_scale", "sample.labels", "sample.prompts", "figures.names"),
    *("data.data_dir", "distributed", "evaluate.inception_weights", "evaluate.reference"),
    *("optimizer.name", "optimizer.cosine_steps", "optimizer.final_learning_rate"),
    "evaluate.num_importance",  # of another method
}
Values = Mapping[str, Any]  # dotted field or section -> another value


class Told(Exception):
    """The protocol that a metric was about to measure under."""


class Asked(Context):
    """A context in which a metric tells its protocol, and measures nothing."""

    __slots__ = ()

    def folder(self, metric: str, protocol: Mapping[str, Any]) -> pathlib.Path:
        raise Told(dict(protocol))


def other_values(field: str, value: Any) -> list[Any]:
    """Values for a field of any rule; not all of them may be."""
    found: list[Any] = list(WORDS.get(field, ()))
    match FIELDS.get(field):
        case Flag():
            found.append(not value)
        case Word(names=names):
            found += names
        case Range(whole=True):
            found += (value + 1, value - 1, value * 2)
        case Range():
            found += (value * 0.9, 0.5, 1.5)
        case Many():
            found += (value[:-1], (1, 2))
    return [other for other in found if other != value]


def variations(config: ConfigDict) -> dict[str, list[Values]]:
    """For every field of a config, the ways to have another value of it; a choice goes whole."""
    found = {}
    for field, value in flat(config.to_dict()).items():
        section, _, last = field.rpartition(".")
        table, supplied = test_choices.TABLES.get(section, {}), SUPPLIED.get(section, ())
        if last == "name" and table:
            free = [name for name in table if not lookup.required(table[name], supplied)]
            found[field] = [{section: {"name": name}} for name in free if name != value]
        else:
            found[field] = [{field: other} for other in other_values(field, value)]
    return found


class Model:
    """A small chain with random weights, under a config and under variations of it."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path) -> None:
        self.config, self.workdir = config, workdir
        drawn = np.random.default_rng(0)
        params = build(config).method.init(jax.random.key(0))
        self.params = jax.tree.map(lambda x: x + drawn.normal(0, 0.3, x.shape).astype("f4"), params)

    def context(self, values: Values) -> Context | None:
        """None where the checkpoint or a metric refuses the config."""
        config = self.config
        for field, value in values.items():
            config = changed(config, field, value)
        try:
            check_same_model(config_to_dict(self.config), config, self.workdir)
            experiment = build(config)
            bound.check_estimate(experiment)
            sample_store.protocol_fields(config.evaluate)
        except ValueError:
            return None
        loaded = Loaded(8, self.params, Origin(EMA, NOTHING))
        return evaluate.context_of(experiment, self.workdir, loaded)


def protocol(metric: str, context: Context) -> dict[str, Any]:
    """The protocol of a metric, without measuring it."""
    if metric == "samples":
        fields = sample_store.protocol_fields(context.experiment.config.evaluate)
        return context.sampling | fields
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bound, "make_estimate", lambda *_: lambda params: np.zeros(2))
        try:
            return evaluate.METRICS[metric].measure(Asked(*context)).protocol
        except Told as told:
            return told.args[0]


def outcome(metric: str, context: Context) -> list[Any]:
    """The numbers that a metric finds; of samples, themselves."""
    if metric != "samples":
        return jax.tree.leaves(evaluate.METRICS[metric].measure(context).values)
    config = context.experiment.config
    how = {"num_steps": config.sample.num_steps, "quantize": config.evaluate.quantize}
    sample_fn = make_sample_fn(context.experiment, context.mesh, **how)
    return [draw(sample_fn, context.params, 0, 4, 4, context.mesh).samples]


def halves(fields: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    return fields[: len(fields) // 2], fields[len(fields) // 2 :]


class Search:
    """Looks for fields that no protocol tells, many at a time."""

    def __init__(self, model: Model) -> None:
        self.model, self.ways = model, variations(model.config)
        context = model.context({})
        assert context is not None
        self.protocols = {name: protocol(name, context) for name in METRICS}
        self.outcomes = {name: outcome(name, context) for name in METRICS}
        self.untold: dict[str, list[str]] = {name: [] for name in METRICS}
        self.refused: set[str] = set()

    def changed(self, fields: Sequence[str]) -> Context | None:
        """The context of other values of all the fields; None where they are refused."""
        values = [self.ways[field][0] for field in fields]
        return self.model.context({name: value for way in values for name, value in way.items()})

    def ask(self, fields: Sequence[str], metrics: Sequence[str] = METRICS) -> None:
        """Sorts fields by the metrics that do not tell them, and those that are refused."""
        if len(fields) == 1 and not self.ways[fields[0]]:
            self.refused |= set(fields)
            return
        context = self.changed(fields)
        if context is None and len(fields) == 1:
            self.ways[fields[0]].pop(0)
            self.ask(fields, metrics)
            return
        silent = [m for m in metrics if context and protocol(m, context) == self.protocols[m]]
        for name in silent:
            self.untold[name] += fields
        rest = [name for name in metrics if name not in silent]
        if rest and len(fields) > 1:
            for half in halves(fields):
                self.ask(half, rest)

    def matter(self, metric: str, fields: Sequence[str]) -> list[str]:
        """Those of the fields under other values of which a metric finds something else."""
        context = self.changed(fields)
        if context is not None:
            pairs = zip(outcome(metric, context), self.outcomes[metric], strict=True)
            rounding = 0.02 if metric == "samples" else 1e-5  # of 255, and of bits
            if all(np.allclose(a, b, rtol=1e-5, atol=rounding) for a, b in pairs):
                return []
        if len(fields) == 1:
            return list(fields)
        return [field for half in halves(fields) for field in self.matter(metric, half)]


def test_whatever_changes_a_number_is_in_its_protocol(
    tiny: Callable[[], ConfigDict], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field has another value in turn; those that a protocol does not tell, all at once.

    Fields that say what the parameters mean are told by the checkpoint, which refuses others. Some
    sixty configs are built, and each metric is measured twice.
    """
    config = tiny()
    config.evaluate.update(num_images=4, batch_size=4, num_strata=2)
    config.evaluate.update(num_samples=8, num_splits=4, quantize="none")
    config.loss = ConfigDict({"name": "vlb"})
    monkeypatch.setattr(builder, "_one_loss", lambda *_: jnp.zeros(()))  # which takes half the time
    search = Search(Model(config, tmp_path))
    sections: dict[str, list[str]] = {}
    for field in search.ways:
        alone = field if field in FIXED else field.partition(".")[0]
        sections.setdefault(alone, []).append(field)
    for fields in sections.values():
        search.ask(fields)
    assert search.refused == FIXED
    assert {name: search.matter(name, found) for name, found in search.untold.items()} == {
        name: [] for name in METRICS
    }
