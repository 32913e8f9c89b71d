"""Samples judged by features: the numbers are those of the same images, however they were drawn."""

import csv
import json
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, evaluate
from experiments.build import build
from experiments.data.dataset import SPLITS, Source, fingerprint, read_images
from experiments.drawing import draw, make_sample_fn
from experiments.features import classifier, frechet, scores
from experiments.features.extractors import Extractor, features_of, load_extractor, make_feature_fn
from experiments.features.references import read_statistics, real_features
from experiments.files.atomic import digest
from experiments.files.tensors import cache_folder
from experiments.metrics import sample_store
from experiments.metrics.metric import Context
from experiments.state import load_ema
from experiments.workdir.checkpoint import crc32s
from tests.experiments import modes
from tests.experiments.conftest import QUICK
from tests.experiments.processes import in_processes

Make = Callable[[], ConfigDict]
# experiments.main, whose classifier is the quick one too
MAIN = f"""
import runpy
from experiments.features import classifier
classifier.RECIPE = classifier.{QUICK}
runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)
"""


pytestmark = pytest.mark.usefixtures("quick_classifier")


@pytest.fixture(scope="module")
def config(trained: tuple[ConfigDict, pathlib.Path]) -> ConfigDict:
    config = ConfigDict(trained[0].to_dict())
    config.evaluate.update(metrics="samples", num_samples=20, num_splits=2, chain_points=3)
    return config


@pytest.fixture
def workdir(trained: tuple[ConfigDict, pathlib.Path]) -> pathlib.Path:
    return trained[1]


def changed(config: ConfigDict, **fields: object) -> ConfigDict:
    other = ConfigDict(config.to_dict())
    other.evaluate.update(fields)
    return other


@pytest.fixture(scope="module")
def extractor(config: ConfigDict) -> Extractor:
    return load_extractor("auto", None, build(config).dataset)


def test_the_classifier_is_trained_once_and_known_by_its_hash(config, extractor) -> None:
    dataset = build(config).dataset
    assert 0.5 < extractor.accuracy <= 1.0  # 60 steps of a tiny network
    again = load_extractor("classifier", None, dataset)
    assert again.sha256 == extractor.sha256 and again.accuracy == extractor.accuracy
    assert extractor.name == f"digits-cnn-{extractor.sha256[:8]}" and not extractor.is_inception
    moved = jax.tree.map(lambda x: x + 1e-3, extractor.params)
    assert classifier._digest(moved) != extractor.sha256
    assert classifier._digest(extractor.params) == extractor.sha256


def test_only_inception_s_numbers_have_its_names(extractor) -> None:
    inception = extractor._replace(name="inception-2015-12-05")
    for name in ("fid_train", "is", "kid", "precision"):
        assert inception.quantity(name) == name
        other = extractor.quantity(name)
        assert other.endswith(extractor.name) and not other.startswith(("fid", "is_", "kid"))
    assert extractor.quantity("fid_train") == f"fd_train_{extractor.name}"
    assert extractor.quantity("is") == f"classifier_score_{extractor.name}"


def test_an_extractor_that_cannot_be_is_refused(config, tmp_path: pathlib.Path) -> None:
    dataset = build(config).dataset
    with pytest.raises(FileNotFoundError, match=r"(?s)not downloaded silently.*curl"):
        load_extractor("inception", None, dataset)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_extractor("auto", str(tmp_path / "nowhere.pth"), dataset)
    with pytest.raises(ValueError, match="has no labels.*inception_weights"):
        load_extractor("classifier", None, dataset._replace(num_classes=None))


def test_features_do_not_depend_on_batches_or_devices(config, extractor, all_devices: None) -> None:
    source = build(config).dataset.open("test")
    pictures = read_images(source, 0, 21)["image"]

    def look(mesh, batch_size: int):
        feature_fn = make_feature_fn(extractor, mesh)
        return features_of(feature_fn, lambda a, b: pictures[a:b], 21, batch_size, mesh)

    one = devices.make_mesh(jax.devices()[:1])
    reference = look(one, 21)
    for other in (look(one, 5), look(devices.make_mesh(), 8)):
        for ours, theirs in zip(reference, other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert reference.features.shape == (21, 16) and reference.logits.shape == (21, 10)


@pytest.mark.parametrize(("count", "batch_size"), [(256, 250), (64, 50), (1497, 150), (7, 10)])
def test_features_are_computed_once(count: int, batch_size: int) -> None:
    """Batches share the images out: hardly more than `count` go through the network."""
    mesh, sizes = devices.make_mesh(jax.devices()[:1]), []

    def feature_fn(pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        sizes.append(len(pictures))
        return pictures[:, 0, 0], pictures[:, 0, 0]

    pictures = np.arange(count, dtype=np.float32)[:, None, None, None].repeat(3, axis=3)
    found = features_of(feature_fn, lambda a, b: pictures[a:b], count, batch_size, mesh)
    np.testing.assert_array_equal(found.features[:, 0], np.arange(count))
    assert len(set(sizes)) == 1 and max(sizes) <= batch_size
    assert count <= sum(sizes) < count + len(sizes)


def test_the_numbers_are_those_of_the_samples(config, workdir, extractor) -> None:
    """Every value again from the images that the program's sampler draws, by the definitions."""
    experiment = build(config)
    values = modes.evaluate(experiment, workdir)["samples"]
    mesh = devices.make_mesh()
    params = load_ema(experiment, workdir, mesh).params
    samples = draw(make_sample_fn(experiment, mesh, num_steps=0), params, 0, 20, 8, mesh).samples
    feature_fn = make_feature_fn(extractor, mesh)

    def look(pictures: np.ndarray):
        read = pictures.__getitem__
        return features_of(feature_fn, lambda a, b: read(slice(a, b)), len(pictures), 8, mesh)

    fake = look(samples)
    splits = {}
    for split in ("train", "test"):
        source = experiment.dataset.open(split)
        splits[split] = look(read_images(source, 0, len(source))["image"]).features
    scale = splits["train"].std(axis=0, ddof=1, dtype=np.float64)
    number = {
        name.removesuffix(f"_{extractor.name}"): value["value"] for name, value in values.items()
    }
    for split, real in splits.items():
        x, y = fake.features / scale, real / scale
        expected = frechet.frechet_distance(
            x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)
        )
        assert number[f"fd_{split}"] == pytest.approx(expected, rel=1e-3)
    score = scores.inception_score(fake.logits, 2)
    assert number["classifier_score"] == pytest.approx(score.mean, rel=1e-4)
    ratio = scores.nearest_neighbour_ratio(
        fake.features / scale, splits["train"] / scale, splits["test"] / scale
    )
    assert number["nearest_neighbour_ratio"] == pytest.approx(ratio, rel=1e-3)
    assert number["fd_train_of_held_out"] < number["fd_train_of_gaussian_pixels"]
    assert number["fd_train_of_held_out"] < number["fd_train"]
    section = json.loads((workdir / "results.json").read_text())["samples"]
    protocol = section["protocol"]
    assert protocol["extractor_sha256"] == extractor.sha256 and protocol["num_samples"] == 20
    assert protocol["protocol"] == "custom" and protocol["quantize"] == "round"
    for split in SPLITS:
        source = experiment.dataset.open(split)
        assert protocol[f"{split}_fingerprint"] == fingerprint("digits", source)
    assert not any(name.startswith(("fid", "kid", "is")) for name in section["values"])


def test_without_held_out_images_the_other_numbers_stay(config, workdir) -> None:
    """As under the 256x256 configs, which train on every image."""
    experiment = build(changed(config, split="train"))
    whole = modes.evaluate(experiment, workdir)["samples"]

    dataset = experiment.dataset

    def open_train(split: str) -> Source:
        assert split == "train"
        return dataset.open(split)

    experiment = experiment._replace(dataset=dataset._replace(open=open_train, splits=("train",)))
    evaluate.check(experiment)
    found = modes.evaluate(experiment, workdir)["samples"]
    missing = {name for name in whole if name not in found}
    assert {name.partition("_digits")[0] for name in missing} == {
        *("fd_test", "nearest_neighbour_ratio", "fd_train_of_held_out")
    }
    assert found == {name: value for name, value in whole.items() if name not in missing}
    protocol = json.loads((workdir / "results.json").read_text())["samples"]["protocol"]
    assert (protocol["test_images"], protocol["test_fingerprint"]) == (0, None)


@pytest.mark.slow
def test_two_processes_judge_samples_like_one(
    config, trained_unet, tmp_path: pathlib.Path, monkeypatch
) -> None:
    """Each draws half of every batch and looks at half; the classifier is the only thing shared."""
    unet, workdir = ConfigDict(trained_unet[0].to_dict()), trained_unet[1]
    unet.evaluate = config.evaluate
    one = modes.evaluate(build(unet), workdir)["samples"]
    run, cache = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(workdir, run, ignore=shutil.ignore_patterns("evaluation", "results.json"))
    shutil.copytree(cache_folder() / "classifiers", cache / "classifiers")
    monkeypatch.setenv("DDPM_CACHE", str(cache))
    fields = ("metrics", "num_samples", "num_splits")
    outputs = in_processes(
        2,
        *("-c", MAIN, "--mode=evaluate", f"--workdir={run}"),
        *(f"--config.evaluate.{name}={config.evaluate[name]}" for name in fields),
    )
    assert "2 process(es)" in outputs[0] and "samples" not in outputs[1]
    two = json.loads((run / "results.json").read_text())["samples"]["values"]
    assert list(two) == list(one)
    for name, value in one.items():
        assert two[name]["value"] == pytest.approx(value["value"], rel=1e-4), name
    assert len(list((cache / "references").iterdir())) == 2  # made there, by one of the two


def test_what_was_drawn_is_not_drawn_again(config, workdir, monkeypatch) -> None:
    config = changed(config, num_samples=24, quantize="floor")
    calls, make = [], sample_store.make_sample_fn

    def counting(*arguments, **options):
        sample_fn = make(*arguments, **options)

        def call(*inputs):
            calls.append(None)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return sample_fn(*inputs)

        return call

    monkeypatch.setattr(sample_store, "make_sample_fn", counting)
    with pytest.raises(KeyboardInterrupt):
        modes.evaluate(build(config), workdir)
    again = modes.evaluate(build(config), workdir)["samples"]
    assert len(calls) == 3 + 2  # of three batches the first was kept
    assert modes.evaluate(build(config), workdir)["samples"] == again
    assert len(calls) == 5
    modes.evaluate(build(changed(config, num_samples=32)), workdir)
    assert len(calls) == 6


def test_what_is_not_finite_is_not_judged_and_loses_nothing(
    config, trained, tmp_path: pathlib.Path, monkeypatch
) -> None:
    drawn = shutil.ignore_patterns("evaluation", "samples")
    run = shutil.copytree(trained[1], tmp_path / "run", ignore=drawn)
    config = changed(config, metrics="bpd_fast,samples", num_samples=12)
    make = sample_store.make_sample_fn
    calls = []

    def spoilt(*arguments, **options):
        sample_fn = make(*arguments, **options)

        def call(*inputs):
            calls.append(None)
            samples, progress, finite, evaluations = sample_fn(*inputs)
            bad = [2, 3, 6] if len(calls) > 1 else []  # of the second batch, 12 to 15 are unused
            return samples, progress, finite.at[np.array(bad, int)].set(False), evaluations

        return call

    monkeypatch.setattr(sample_store, "make_sample_fn", spoilt)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"(?s)^2 of the samples 8 to 11 .*of step 8.*another"):
            modes.evaluate(build(config), run)
        assert len(calls) == 2  # the second time they are read
    assert (
        "bits_per_dim_estimate"
        in json.loads((run / "results.json").read_text())["bpd_fast"]["values"]
    )


def test_samples_of_other_weights_at_the_same_step_are_drawn_anew(config, workdir) -> None:
    """A folder whose checkpoints were replaced, by another training or a conversion, has both."""
    experiment, mesh = build(config), devices.make_mesh()
    step, params, origin = load_ema(experiment, workdir, mesh)
    source = experiment.dataset.open("test")

    def folder(params) -> pathlib.Path:
        weights = digest(crc32s(params))
        context = Context(experiment, workdir, mesh, step, params, source, 10, weights, origin)
        return context.folder("samples", {})

    assert folder(params) == folder(load_ema(experiment, workdir, mesh)[1])
    assert folder(params) != folder(jax.tree.map(lambda x: x * 1.01, params))


def test_the_chain_ends_in_the_samples(config, workdir, monkeypatch) -> None:
    """Its last estimate is the sample, so that its last numbers are those of `samples`."""
    config = changed(config, metrics="samples,chain")
    calls, make = [], sample_store.make_sample_fn

    def counting(*arguments, **options):
        calls.append(options["record"])
        return make(*arguments, **options)

    monkeypatch.setattr(sample_store, "make_sample_fn", counting)
    results = modes.evaluate(build(config), workdir)
    assert calls == [(7, 4, 0), (7, 4, 0)] or calls == [(7, 3, 0), (7, 3, 0)]
    with (workdir / "chain.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["reverse_time"]) for row in rows][-1] == 8 and len(rows) == 3
    for name, value in results["samples"].items():
        if name in rows[-1]:
            assert float(rows[-1][name]) == pytest.approx(value["value"], rel=1e-6)
    assert (workdir / "chain.png").is_file()


def test_a_chain_seen_once_is_seen_at_its_end(config) -> None:
    """`samples` takes the last estimate for the sample, which no other time than 0 gives."""
    for points in (1, 2, 3, 8, 20):
        times = sample_store.chain_times(build(changed(config, chain_points=points)))
        assert times[-1] == 0 and len(times) == min(points, 8)


def test_of_several_sets_the_nearest_counts(config, workdir) -> None:
    values = modes.evaluate(build(changed(config, num_samples=10, num_sets=2)), workdir)
    distances = next(v for k, v in values["samples"].items() if k.startswith("fd_train_digits"))
    assert len(distances["sets"]) == 2 and distances["value"] == min(distances["sets"])


def test_published_statistics_can_be_the_reference(config, workdir, extractor, tmp_path) -> None:
    """The cache's own files have the keys that published ones have."""
    path = next((cache_folder() / "references").glob(f"{extractor.name}-*-train-*.npz"))
    results = modes.evaluate(build(changed(config, reference=str(path))), workdir)["samples"]
    value = {name.removesuffix(f"_{extractor.name}"): v["value"] for name, v in results.items()}
    assert value["fd_file"] == pytest.approx(value["fd_train"], rel=1e-9)
    with pytest.raises(FileNotFoundError, match="do not exist"):
        read_statistics(tmp_path / "none.npz", extractor, 16)
    with pytest.raises(ValueError, match=r"mu \(16,\).*need \(2048,\)"):
        read_statistics(path, extractor, 2048)
    np.savez(tmp_path / "bad.npz", mean=np.zeros(16))
    with pytest.raises(ValueError, match="no plain arrays `mu` and `sigma`"):
        read_statistics(tmp_path / "bad.npz", extractor, 16)


def test_statistics_of_another_extractor_are_no_reference(config, extractor, tmp_path) -> None:
    """Every data set's classifier has features of one width, so that the width tells nothing."""
    arrays = {"mu": np.zeros(16), "sigma": np.eye(16)}
    other = json.dumps({"extractor_sha256": "0" * 64})
    np.savez(tmp_path / "other.npz", **arrays, metadata=np.array(other))
    np.savez(tmp_path / "published.npz", **arrays)
    inception = extractor._replace(name="inception-2015-12-05")
    for judge in (extractor, inception):
        with pytest.raises(ValueError, match="features of the extractor with SHA-256 000.*nothing"):
            read_statistics(tmp_path / "other.npz", judge, 16)
    with pytest.raises(ValueError, match="features of an unnamed extractor.*nothing"):
        read_statistics(tmp_path / "published.npz", extractor, 16)
    published = read_statistics(tmp_path / "published.npz", inception, 16)
    np.testing.assert_array_equal(published.covariance, np.eye(16))


def test_damaged_features_are_said_to_be(config, workdir, extractor, tmp_path, monkeypatch) -> None:
    dataset, mesh = build(config).dataset, devices.make_mesh()
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    arguments = (extractor, dataset, "test", 16, make_feature_fn(extractor, mesh), 8, mesh)
    whole = real_features(*arguments)
    (path,) = (tmp_path / "references").iterdir()
    np.testing.assert_array_equal(real_features(*arguments).features, whole.features)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is damaged; delete it"):
        real_features(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(protocol="ddpm"), "protocol = 'ddpm' is not known.*custom, paper"),
        (dict(quantize="ceil"), "quantize = 'ceil' is not known.*round, floor, none"),
        (dict(drop=301), "drop = 301 leaves 0 of the 300 images of the test split"),
        (dict(reference="nowhere.npz"), "reference = 'nowhere.npz' does not exist"),
        (dict(extractor="vgg"), r"extractor = 'vgg' is not known.*auto, inception"),
        (dict(num_samples=5, num_splits=10), "num_samples = 5 must be at least num_splits = 10"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(config, fields: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.check(build(changed(config, **fields)))


def test_a_protocol_is_known_by_its_fields(config) -> None:
    paper = sample_store.protocol_fields(changed(config, protocol="paper").evaluate)
    assert paper["protocol"] == "paper" and paper["num_samples"] == 50_000
    by_hand = changed(config, **sample_store.PROTOCOLS["edm"])
    assert sample_store.protocol_fields(by_hand.evaluate)["protocol"] == "edm"


def test_quantizing(config) -> None:
    from experiments import images

    x = np.float32([-2.0, -1.0, 0.0, 0.5 / 127.5 - 1, 0.996, 1.0])
    np.testing.assert_array_equal(images.QUANTIZE["floor"](x), [0, 0, 127, 0, 254, 255])
    np.testing.assert_array_equal(images.QUANTIZE["round"](x), [0, 0, 128, 1, 254, 255])
    np.testing.assert_allclose(
        images.QUANTIZE["none"](x), [0, 0, 127.5, 0.5, 254.49, 255], atol=1e-3
    )
