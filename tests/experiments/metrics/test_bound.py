"""The bound over a data set: its parts add up, and nothing but the image decides its value."""

import csv
import itertools
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import stats

from experiments import devices, evaluate
from experiments.build import build
from experiments.data.dataset import Source, fingerprint, read_images
from experiments.metrics import baselines, bound, flow, parts
from experiments.workdir.protocols import differences
from tests.experiments import modes

Make = Callable[[], ConfigDict]


def changed(config: ConfigDict, **fields: object) -> ConfigDict:
    other = ConfigDict(config.to_dict())
    other.evaluate.update(fields)
    return other


def compute(
    config: ConfigDict, params, folder: pathlib.Path, count: int = 10, **options
) -> bound.BoundTable:
    experiment = build(config)
    mesh = options.get("mesh", devices.make_mesh(jax.devices()[:1]))
    denoise = options.get("denoise", experiment.method.chain.denoise)
    source = experiment.dataset.open("test")
    placed = jax.device_put(params, devices.replicated(mesh))
    return bound.evaluate_bound(experiment, denoise, placed, source, count, mesh, folder)


def test_evaluation_writes_the_bound_and_its_parts(trained: tuple) -> None:
    config, workdir = trained
    values = modes.evaluate(build(config), workdir)["bpd"]
    section = json.loads((workdir / "results.json").read_text())["bpd"]
    assert section["values"] == values
    number = {name: value["value"] for name, value in values.items()}
    assert number["bits_per_dim"] == pytest.approx(number["rate"] + number["distortion"], rel=1e-9)
    assert number["rate"] == pytest.approx(number["prior"] + number["kl"], rel=1e-9)
    assert values["bits_per_dim"]["standard_error"] > 0
    protocol = section["protocol"]
    assert protocol["num_images"] == 10 and protocol["split"] == "test"
    assert protocol["weights"] == "ema" and protocol["checkpoint_step"] == 8
    assert protocol["decoder"] == "tanh" and protocol["dataset"] == "digits"
    assert protocol["variance"] == config.variance.name
    test = build(config).dataset.open("test")
    assert protocol["fingerprint"] == fingerprint("digits", test)
    train = build(config).dataset.open("train")
    assert fingerprint("digits", train) != protocol["fingerprint"]
    with (workdir / "bound.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [row["t"] for row in rows] == list(range(8))
    assert [row["reverse_time"] for row in rows] == list(range(8, 0, -1))
    assert rows[0]["bits_per_dim"] == pytest.approx(number["decoder"], rel=1e-6)
    assert sum(row["bits_per_dim"] for row in rows[1:]) == pytest.approx(number["kl"], rel=1e-6)
    # The rate at t is what the terms after t add up to, and the prior at the very end.
    assert rows[0]["rate"] == pytest.approx(number["rate"], rel=1e-6)
    assert rows[-1]["rate"] == pytest.approx(number["prior"], rel=1e-6)
    for before, after in itertools.pairwise(rows):
        assert before["rate"] - after["rate"] == pytest.approx(after["bits_per_dim"], abs=1e-6)
    for row in rows:  # the root is concave: the mean of roots is the smaller
        assert 0 < row["rmse_mean_of_roots"] <= row["rmse_root_of_mean"] < 255
    assert Image.open(workdir / "rate_distortion.png").width > 500
    assert not list((workdir / "evaluation").glob("bpd*"))


def test_the_bound_of_an_image_depends_on_the_image_alone(
    trained: tuple, params, tmp_path, all_devices: None
) -> None:
    """Not on its batch, its padding, the devices, or how many timesteps are taken at once."""
    config, _ = trained
    reference = compute(changed(config, batch_size=10), params, tmp_path / "a")
    others = [
        compute(changed(config, batch_size=4), params, tmp_path / "b"),
        compute(changed(config, batch_size=8), params, tmp_path / "c", mesh=devices.make_mesh()),
        compute(changed(config, timesteps_per_call=3), params, tmp_path / "d"),
        compute(changed(config, timesteps_at_once=3), params, tmp_path / "e"),
    ]
    for other in others:
        for ours, theirs in zip(reference, other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)
    assert reference.prior.shape == (10,) and reference.terms.shape == (8,)
    part = compute(config, params, tmp_path / "f", count=3)
    np.testing.assert_allclose(part.total, reference.total[:3], rtol=2e-4)


def test_an_interrupted_bound_goes_on_where_it_was(
    trained: tuple, params, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(trained[0], batch_size=4, timesteps_per_call=3)
    whole = compute(config, params, tmp_path / "whole")
    calls = []
    make = bound.make_terms_fn

    def counting(*arguments):
        terms_fn = make(*arguments)

        def call(*inputs):
            calls.append(None)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return terms_fn(*inputs)

        return call

    monkeypatch.setattr(bound, "make_terms_fn", counting)
    with pytest.raises(KeyboardInterrupt):
        compute(config, params, tmp_path / "parts")
    assert len(list((tmp_path / "parts").iterdir())) == 4
    again = compute(config, params, tmp_path / "parts")
    assert len(calls) == 5 + 3 * 3 - 4  # three batches, three chunks each, four of them kept
    for ours, theirs in zip(whole, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_interrupted_metric_costs_those_before_it_nothing(trained, monkeypatch) -> None:
    config, workdir = trained
    experiment = build(changed(config, metrics="bpd,bpd_fast", num_images=6))
    reads = []
    read = parts.Parts.read

    def counting(self: parts.Parts, name: str) -> dict[str, np.ndarray]:
        reads.append(name)
        return read(self, name)

    def interrupted(context) -> None:
        raise KeyboardInterrupt

    stop = evaluate.METRICS["bpd_fast"]._replace(measure=interrupted)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "METRICS", {**evaluate.METRICS, "bpd_fast": stop})
        with pytest.raises(KeyboardInterrupt):
            modes.evaluate(experiment, workdir)
    kept = json.loads((workdir / "results.json").read_text())["bpd"]["values"]
    monkeypatch.setattr(parts.Parts, "read", counting)
    assert modes.evaluate(experiment, workdir)["bpd"] == kept
    assert len(reads) == 1  # the one batch
    assert not list((workdir / "evaluation").glob("bpd*"))


def test_a_damaged_part_is_said_to_be(tmp_path: pathlib.Path) -> None:
    kept = parts.Parts(tmp_path, ["a"])
    kept.write("a", {"x": np.arange(100)})
    again = parts.Parts(tmp_path, ["a"])
    np.testing.assert_array_equal(again.read("a")["x"], np.arange(100))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.npz, a part of an .* is damaged; delete it"):
        again.read("a")


def test_flows_that_were_solved_are_not_solved_again(trained, monkeypatch) -> None:
    """And a mean over the solved images alone is not one over all of them."""
    config, workdir = trained
    config, calls = changed(config, metrics="ode", num_images=20), []

    def flow_fn(params, batch, indices):
        calls.append(int(indices[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return indices * 1.0, indices, indices != 3

    monkeypatch.setattr(flow, "make_flow_fn", lambda experiment, mesh: flow_fn)
    with pytest.raises(KeyboardInterrupt):
        modes.evaluate(build(config), workdir)
    values = modes.evaluate(build(config), workdir)["ode"]
    assert calls == [0, 8, 16, 16]
    solved = [i for i in range(20) if i != 3]
    assert values["flow_bits_per_dim"]["value"] == pytest.approx(np.mean(solved))
    assert values["flow_unsolved_images"]["value"] == 1
    protocol = json.loads((workdir / "results.json").read_text())["ode"]["protocol"]
    assert protocol["solved_images"] == 19 and protocol["num_images"] == 20
    assert differences([protocol, protocol | {"solved_images": 20}])
    assert not list((workdir / "evaluation").glob("ode*"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (dict(batch_size=1), dict(batch_size=4)),
        (dict(timesteps_per_call=1), dict(timesteps_per_call=3)),
    ],
)
def test_parts_of_another_size_are_not_taken_for_these(
    trained: tuple, params, tmp_path, monkeypatch: pytest.MonkeyPatch, before: dict, after: dict
) -> None:
    """A part of one image or timestep would otherwise be spread over several without an error."""
    config = changed(trained[0], batch_size=4, timesteps_per_call=8)
    whole = compute(changed(config, **after), params, tmp_path / "whole", count=4)
    write = parts.Parts.write

    def interrupted(self: parts.Parts, name: str, arrays: dict[str, np.ndarray]) -> None:
        write(self, name, arrays)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute(changed(config, **before), params, tmp_path / "parts", count=4)
    assert len(list((tmp_path / "parts").iterdir())) == 1
    again = compute(changed(config, **after), params, tmp_path / "parts", count=4)
    for ours, theirs in zip(whole, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_several_draws_are_averaged_and_give_an_error(trained: tuple, params, tmp_path) -> None:
    config = trained[0]
    one = compute(config, params, tmp_path / "one")
    three = compute(changed(config, num_draws=3), params, tmp_path / "three")
    assert three.draws.shape == (3,) and len(set(three.draws.tolist())) == 3
    assert three.draws[0] == pytest.approx(one.draws[0]) == pytest.approx(one.total.mean())
    assert three.draws.mean() == pytest.approx(three.total.mean())
    assert three.terms.sum() + three.prior.mean() == pytest.approx(three.total.mean())


def test_the_estimate_agrees_with_the_whole_bound(trained: tuple, params, tmp_path) -> None:
    """In the mean over draws of the timesteps, image by image; with every timestep, exactly."""
    config = changed(trained[0], num_strata=3)
    experiment, mesh = build(config), devices.make_mesh(jax.devices()[:1])
    whole = compute(config, params, tmp_path).total
    source = experiment.dataset.open("test")
    placed = jax.device_put(params, devices.replicated(mesh))
    every = bound.make_estimate(build(changed(config, num_strata=7)), source, 10, mesh)(placed)
    np.testing.assert_allclose(every, whole, rtol=1e-4)
    few = bound.make_estimate(experiment, source, 10, mesh)(placed)
    assert few.shape == (10,) and abs(few - whole).max() > 1e-3
    assert few.mean() == pytest.approx(whole.mean(), rel=0.3)


def test_the_untrained_baseline_is_the_untrained_network(trained: tuple, tmp_path) -> None:
    """Its network returns zeros without being run; a new network returns almost zeros."""
    experiment = build(trained[0])
    fresh = jax.jit(experiment.method.init)(jax.random.key(5))
    zeros = baselines.untrained_denoise(experiment.method.chain)
    numbers = [
        compute(trained[0], fresh, tmp_path / "a", count=4),
        compute(trained[0], {}, tmp_path / "b", count=4, denoise=zeros),
    ]
    np.testing.assert_allclose(numbers[0].terms, numbers[1].terms, rtol=1e-3)


def splits(trained: tuple) -> tuple[Source, Source]:
    dataset = build(trained[0]).dataset
    return dataset.open("train"), dataset.open("test")


def test_the_gaussian_baseline_is_its_formula(trained: tuple) -> None:
    train_, test = splits(trained)
    actual = baselines.gaussian_per_pixel(train_, test, 6, 17)
    fit = np.rint(read_images(train_, 0, len(train_))["image"] / 255 * 16) / 8 - 1
    x = np.rint(read_images(test, 0, 6)["image"] / 255 * 16) / 8 - 1
    mean, std = fit.mean(axis=0), np.sqrt(fit.var(axis=0) + (2 / 16) ** 2)
    upper = np.where(x > 0.999, np.inf, x + 1 / 16)
    lower = np.where(x < -0.999, -np.inf, x - 1 / 16)
    log_p = np.log2(stats.norm.cdf(upper, mean, std) - stats.norm.cdf(lower, mean, std))
    np.testing.assert_allclose(actual, -log_p.reshape(6, -1).mean(axis=1), rtol=1e-3)


def test_the_histogram_baseline_counts(trained: tuple) -> None:
    train_, test = splits(trained)
    actual = baselines.histogram_per_pixel(train_, test, 6, 17)
    fit, x = (
        np.rint(read_images(source, 0, n)["image"][..., 0] / 255 * 16).astype(int)
        for source, n in ((train_, len(train_)), (test, 6))
    )
    expected = [
        np.mean(
            [
                -np.log2((1 + (fit[:, i, j] == picture[i, j]).sum()) / (len(fit) + 17))
                for i in range(8)
                for j in range(8)
            ]
        )
        for picture in x
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    # Whoever knows only the levels does worse, and one Gaussian of each pixel does too.
    assert actual.mean() < baselines.uniform_over_levels(17) == pytest.approx(4.0875, abs=1e-4)
    every = [fit_(train_, test, 300, 17).mean() for fit_ in FITS]
    assert every[1] < every[0]


FITS = (baselines.gaussian_per_pixel, baselines.histogram_per_pixel)


def test_the_floor_samples_have_the_statistics_of_their_model(trained: tuple) -> None:
    source, _ = splits(trained)
    draw = baselines.gaussian_samples(source, 17, seed=1)
    x = draw(0, 4000).astype(float)
    real = read_images(source, 0, len(source))["image"].astype(float)
    inner = (real.mean(axis=0) > 60) & (real.mean(axis=0) < 195)  # where clipping is mild
    np.testing.assert_allclose(x.mean(axis=0)[inner], real.mean(axis=0)[inner], atol=12)
    assert np.unique(x).size == 17
    made = baselines.noise_samples((8, 8, 1), 256, seed=1)
    noise = made(0, 1000)
    assert noise.dtype == np.uint8 and noise.mean() == pytest.approx(127.5, abs=1)
    assert noise.std() == pytest.approx(73.9, abs=0.5)
    few = baselines.noise_samples((8, 8, 1), 17, seed=1)(0, 100)
    assert set(np.unique(few)) == set(np.unique(x).astype(int))
    for read, whole in ((draw, x), (made, noise)):
        np.testing.assert_array_equal(read(7, 12), whole[7:12])
        assert (read(7, 8) != read(8, 9)).any()


def test_metrics_are_checked_before_anything_runs(trained: tuple) -> None:
    config = trained[0]
    for fields, message in (
        (dict(metrics="bpd,fdi"), r"evaluate\.metrics = 'bpd,fdi' names 'fdi', which is not known"),
        (dict(metrics=""), r"evaluate\.metrics = '' is not known"),
        (dict(metrics="bpd_fast", num_strata=8), r"num_strata = 8 must be 1 to 7"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.check(build(changed(config, **fields)))


def test_the_flow_s_likelihood_is_measured_as_another_quantity(trained: tuple) -> None:
    config, workdir = trained
    config = changed(config, metrics="ode", num_images=3, ode_tolerance=1e-3)
    values = modes.evaluate(build(config), workdir)["ode"]
    assert 0 < values["flow_bits_per_dim"]["value"] < 20
    assert values["flow_evaluations"]["value"] > 7 and values["flow_unsolved_images"]["value"] == 0
    section = json.loads((workdir / "results.json").read_text())["ode"]
    assert "probability-flow" in section["protocol"]["quantity"]
    decoded = changed(config, ode_dequantization="decoder")
    values = modes.evaluate(build(decoded), workdir)["ode"]
    assert 0 < values["flow_bound"]["value"] < 20 and "flow_bits_per_dim" not in values
    other = json.loads((workdir / "results.json").read_text())["ode"]["protocol"]
    assert other["quantity"] != section["protocol"]["quantity"] and other["decoder"] == "tanh"
    with pytest.raises(ValueError, match=r"ode_dequantization = 'noise' is not known"):
        evaluate.check(build(changed(config, ode_dequantization="noise")))
    with pytest.raises(ValueError, match="no image's flow was solved in .*ode_max_steps = 2"):
        modes.evaluate(build(changed(config, ode_max_steps=2)), workdir)
    mu = changed(config)
    mu.parameterization, mu.train.preview_num_steps = ConfigDict({"name": "mu"}), 0
    with pytest.raises(ValueError, match=r"evaluate\.metrics.*mu"):
        evaluate.check(build(mu))
