"""Classes asked for at sampling."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, sample
from experiments.build import build
from experiments.configs import saved
from experiments.drawing import draw, make_sample_fn, requested_labels
from experiments.experiment import Experiment
from experiments.metrics.metric import Context
from experiments.workdir.origin import Origin
from experiments.workdir.protocols import differences, renewed_protocol

Make = Callable[[], ConfigDict]


def conditional(tiny: Make, labels: str = "all", dropout: float = 0.1) -> Experiment:
    config = tiny()
    config.model.class_conditional, config.model.label_dropout = True, dropout
    config.sample.labels = labels
    return build(config)


@pytest.fixture(scope="module")
def drawn(tiny: Make) -> Callable[[str], np.ndarray]:
    """Samples 0 to 19 of a network whose output depends on the label, by what was asked for."""
    mesh = devices.make_mesh(jax.devices()[:1])
    params = jax.jit(conditional(tiny).method.init)(jax.random.key(0))
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype("f4"), params)

    def samples(labels: str) -> np.ndarray:
        sample_fn = make_sample_fn(conditional(tiny, labels), mesh, num_steps=0, quantize="none")
        return draw(sample_fn, params, 0, 20, 20, mesh).samples

    return samples


def test_a_sample_is_of_the_class_that_was_asked_for(drawn) -> None:
    """Sample 3 is the same whether its class is asked for alone or comes in its turn."""
    every, threes, two = drawn("all"), drawn("3"), drawn("3, 1")
    np.testing.assert_allclose(threes[[3, 13]], every[[3, 13]], atol=1e-3)
    np.testing.assert_allclose(two[::2], threes[::2], atol=1e-3)
    np.testing.assert_allclose(two[[1, 11]], every[[1, 11]], atol=1e-3)
    assert all(np.abs(threes[i] - every[i]).max() > 0.01 for i in range(20) if i % 10 != 3)


def test_no_class_in_particular_is_one_of_its_own(drawn) -> None:
    none = drawn("none")
    for label in range(10):
        assert np.abs(none[label] - drawn("all")[label]).max() > 0.01


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("all", range(10)), ("7", [7]), ("(7, 0)", [7, 0]), ("9,9,1,", [9, 9, 1]), ("none", [10])],
)
def test_what_can_be_asked_for(tiny: Make, labels: str, expected: list[int]) -> None:
    assert requested_labels(labels, conditional(tiny).method).tolist() == list(expected)


@pytest.mark.parametrize("labels", ["10", "-1", "3,x", "1.5", "cat", ",", "3 1"])
def test_another_class_is_refused_before_anything_is_drawn(tiny: Make, labels: str) -> None:
    with pytest.raises(ValueError, match=r"sample\.labels = .* 'all', 'none', or classes from 0 t"):
        sample.check(conditional(tiny, labels))


def test_what_the_model_never_learned_is_refused(tiny: Make) -> None:
    with pytest.raises(ValueError, match=r"'none' needs a model .*label_dropout above 0"):
        sample.check(conditional(tiny, "none", dropout=0.0))
    config = tiny()
    sample.check(build(config))
    config.sample.labels = "3"
    with pytest.raises(ValueError, match=r"'3' asks for classes.*class_conditional = True"):
        sample.check(build(config))


def test_numbers_of_other_classes_are_not_compared(tiny: Make, tmp_path) -> None:
    def protocol(labels: str) -> dict:
        experiment, origin = conditional(tiny, labels), Origin("ema", "nothing")
        context = Context(experiment, tmp_path, None, 8, {}, None, 10, "", origin)
        return context.sampling

    assert differences([protocol("3"), protocol("all")]) == {"labels": ["3", "all"]}
    older = {name: value for name, value in protocol("all").items() if name != "labels"}
    assert renewed_protocol(older)["labels"] == "all"
    config = ConfigDict(tiny().to_dict())
    with config.unlocked():
        del config.sample["labels"]
    assert saved.complete(config).sample.labels == "all"
