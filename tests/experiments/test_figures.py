"""The figures of a tiny model: what each shows is what its arrays hold, and the laws behind
them."""

import pathlib
import re
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from ml_collections import ConfigDict
from PIL import Image

from experiments import devices
from experiments.build import build
from experiments.data.dataset import InMemory, gather
from experiments.experiment import Experiment
from experiments.figures import coding, completions, page, process, samples
from experiments.figures.figure import CHAIN, PIXELS, Context, Figure
from experiments.figures.latents import make_latents, noise
from experiments.metrics import bound
from experiments.state import load_ema
from experiments.workdir.config import write_config
from experiments.workdir.origin import Loaded
from tests.experiments.test_main import program

pytestmark = pytest.mark.usefixtures("quick_classifier")


# Of a chain of pixels that is told nothing.
MADE = [name for name, maker in page.FIGURES.items() if {*maker.needs} <= {CHAIN, PIXELS}]


def small(config: ConfigDict, **fields: object) -> ConfigDict:
    other = ConfigDict(config.to_dict())
    other.figures.update(dict(rows=4, columns=4, num_samples=8, resamplings=2) | fields)
    return other


@pytest.fixture(scope="module")
def loaded(trained: tuple[ConfigDict, pathlib.Path], params) -> Loaded:
    """The run's, with parameters for which noise and images matter."""
    found = load_ema(build(trained[0]), trained[1], devices.make_mesh())
    return found._replace(params=jax.device_put(params, devices.replicated(devices.make_mesh())))


@pytest.fixture(scope="module")
def context(trained: tuple[ConfigDict, pathlib.Path], loaded: Loaded) -> Context:
    experiment = build(small(trained[0]))
    return Context(experiment, loaded.params, devices.make_mesh(), experiment.method.chain)


@pytest.fixture(scope="module")
def folder(
    trained: tuple, loaded: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """All of them, as --mode=figures makes them."""
    out = tmp_path_factory.mktemp("figures")
    ideas = [name for name in MADE if page.FIGURES[name].idea]
    for names in ("all", ",".join(ideas)):
        page.figures(build(small(trained[0], names=names)), out, loaded, devices.make_mesh())
    return out


@pytest.mark.parametrize("name", MADE)
def test_every_figure_is_a_picture_with_arrays_and_a_caption(
    name: str, folder: pathlib.Path
) -> None:
    [path] = [path for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".webp")]
    assert min(Image.open(path).size) >= 48
    with np.load(folder / f"{name}.npz") as arrays:
        assert arrays.files and all(np.size(arrays[key]) for key in arrays.files)
    html = (folder / "index.html").read_text()
    title, caption, *_ = (folder / f"{name}.txt").read_text().splitlines()
    assert f'src="{path.name}"' in html and f">{title}<" in html and len(caption) > 40


def test_the_page_has_them_in_one_order_and_no_other(folder: pathlib.Path) -> None:
    html = (folder / "index.html").read_text()
    assert re.findall(r'id="(\w+)"', html) == MADE


def test_a_consistency_term_varies_more_than_a_divergence(folder: pathlib.Path) -> None:
    with np.load(folder / "consistency.npz") as arrays:
        assert arrays["consistency"].mean() > arrays["divergence"].mean()


def test_only_what_is_asked_for_is_drawn(trained: tuple, loaded: Loaded, tmp_path) -> None:
    experiment = build(small(trained[0], names="schedule, forward"))
    made = page.figures(experiment, tmp_path, loaded, devices.make_mesh())
    assert [path.name for path in made] == ["schedule.png", "forward.png"]


@pytest.mark.parametrize(
    ("names", "words"),
    [("sampels", "'sampels' is not known.*samples"), ("classes", "needs a class-conditional")],
)
def test_figures_that_cannot_be_are_refused(trained: tuple, names: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        page.check(build(small(trained[0], names=names)))


def test_without_images_the_others_are_drawn(trained: tuple, tmp_path: pathlib.Path) -> None:
    """As of published weights, whose data set is somewhere else."""
    config = small(trained[0])
    config.data.name, config.data.data_dir = "cifar10", str(tmp_path)
    names, left_out = page.wanted(build(config))
    assert {"samples", "schedule", "shared_latents", "quality"} <= set(names)
    assert not any(page.FIGURES[name].of_images for name in names)
    assert "experiments.prepare" in left_out
    config.figures.names = "forward,samples"
    with pytest.raises(FileNotFoundError, match="experiments.prepare"):
        page.check(build(config))


def test_sample_figures_show_the_program_s_samples(context: Context) -> None:
    drawn = context.samples(16)
    np.testing.assert_array_equal(samples.sample_grid(context).arrays["samples"], drawn.samples)
    found = samples.progressive(context).arrays
    assert found["timesteps"].tolist() == [7, 5, 2, 0]
    np.testing.assert_array_equal(found["progress"][:, -1], context.samples(4).samples)
    frames = samples.reverse(context).arrays["frames"]
    assert len(frames) == 9  # x_T, and after each of 8 steps
    off = abs(frames[-1].astype(int) - drawn.samples)
    assert off.max() <= 16 and (off > 0).mean() < 0.02


def test_completions_of_noise_share_nothing_and_of_little_noise_all(context: Context) -> None:
    pictures = completions.shared_latents(context).arrays["pictures"].astype(float)
    spread = pictures[:, 1:].std(axis=1).mean(axis=(1, 2, 3))
    assert spread[0] > 2.0 * spread[-1]


def test_the_ends_of_an_interpolation_are_the_reconstructions(context: Context) -> None:
    latents = make_latents(context, "interpolation")
    first, second, labels = completions._pairs(context, 1)
    t = 4
    row = completions.between(context, latents, (first[0], second[0], int(labels[0])), t, 7)
    for image, end in ((first[0], row[0]), (second[0], row[-1])):
        x_t = latents.noised(context.encode(image[None]), t, noise(context, "interpolation", 1))
        label = jnp.asarray(labels[:1])
        own = latents.decode(x_t, t, label, jnp.full(1, 1007))
        off = abs(context.decode(own)[0].astype(int) - end)
        assert off.max() <= 16 and (off > 0).mean() < 0.05
    assert (row[0] != row[-1]).any()


def test_pairs_are_of_different_images_of_one_class(trained: tuple, loaded: Loaded) -> None:
    config = small(trained[0])
    config.model.class_conditional = True
    experiment = build(config)
    context = Context(experiment, None, devices.make_mesh(), experiment.method.chain)
    first, second, labels = completions._pairs(context, 12)
    assert labels.tolist() == [*range(10), 0, 1]
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    records = gather(context.real, range(300))
    for image, label in zip(first, labels, strict=True):
        match = (records["image"] == image).all(axis=(1, 2, 3))
        assert label in records["label"][match]


def test_what_is_told_of_an_image_comes_back_exactly(context: Context) -> None:
    found = completions.inpainting(context).arrays
    pictures, masks = found["pictures"], found["masks"][..., 0] > 0
    for column in (2, 3, 4):
        np.testing.assert_array_equal(
            pictures[:, column, ..., 0][masks], pictures[:, 0, ..., 0][masks]
        )
    assert (pictures[:, 2] != pictures[:, 3]).any() and 0.2 < masks.mean() < 0.9


def test_the_nearest_image_of_a_training_image_is_itself(context: Context) -> None:
    train = context.experiment.dataset.open("train")
    pictures = gather(train, [5, 900, 1400])["image"]
    places = samples._nearest(context, pictures, lambda x: x.reshape(len(x), -1) / 255.0)
    assert places[:, 0].tolist() == [5, 900, 1400] and places.shape == (3, samples.NEIGHBOURS)
    found = samples.neighbours(context).arrays
    assert {"train_indices_by_pixels", "train_indices_by_features"} <= set(found)


def test_quality_ends_in_the_samples(context: Context) -> None:
    found = coding.quality(context).arrays
    assert found["steps"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and found["RMSE"][-1] == 0.0
    assert (found["RMSE"][:-1] > 0).all()
    assert sum(name.startswith(("fd_train", "classifier_score")) for name in found) == 2


def test_decoding_counts_the_bits_of_the_bound(context: Context, tmp_path) -> None:
    """All rate at t = 0 is the bound without L_0, and it grows as t falls."""
    records = gather(context.real, range(5))
    rate = coding._rates(context, records)
    assert rate.shape == (8, 5) and (np.diff(rate, axis=0) <= 1e-9).all()
    experiment = context.experiment
    source = InMemory(records["image"], records["label"])
    arguments = (experiment, context.chain.denoise, context.params, source, 5, devices.make_mesh())
    table = bound.evaluate_bound(*arguments, tmp_path, quiet=True)
    np.testing.assert_allclose(rate[0], table.prior + table.divergence, rtol=0.2)
    found = coding.decoding(context).arrays
    assert found["timesteps"][-1] == 0 and (np.diff(found["bits_per_dim"]) > 0).all()


def test_weights_of_the_bound_are_equation_12(context: Context) -> None:
    process_ = context.chain.process
    found, now = process.loss_weights(process_), process_.schedule
    beta, alpha, rest = (
        np.asarray(x, np.float64)[1:] for x in (now.beta, now.alpha, now.noise_variance)
    )
    variance = np.exp(np.asarray(now.large_log_variance, np.float64)[1:])
    np.testing.assert_allclose(found["eps"], beta**2 / (2 * variance * alpha * rest), rtol=1e-4)
    np.testing.assert_allclose(found["mu"], 1 / (2 * variance), rtol=1e-4)


def test_a_class_conditional_model_has_a_row_for_each_class(
    tiny: Callable[[], ConfigDict], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its name beside it, whatever letters that has."""
    config = small(tiny())
    config.model.class_conditional, config.model.label_dropout = True, 0.1
    experiment: Experiment = build(config)
    params = jax.jit(experiment.method.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1, params)
    params = jax.device_put(params, devices.replicated(devices.make_mesh()))
    names = (*"0123456", "$5 and $", "a name that is far too long to stand there", "\udcff")
    experiment = experiment._replace(dataset=experiment.dataset._replace(classes=names))
    context = Context(experiment, params, devices.make_mesh(), experiment.method.chain)
    figure: Figure = samples.classes(context)
    assert figure.arrays["samples"].shape == (40, 8, 8, 1)
    assert figure.arrays["labels"].tolist() == np.repeat(range(10), 4).tolist()
    assert tuple(figure.arrays["names"]) == names
    shown = []
    monkeypatch.setattr(Axes, "set_yticks", lambda axis, at, words: shown.extend(words))
    figure.draw(tmp_path / "classes.png")
    long = "a name that is far too …"
    assert shown == [*"0123456", r"\$5 and \$", long, "?"]
    assert (tmp_path / "classes.png").is_file()
    assert "classes" in page.wanted(build(config))[0]


@pytest.mark.slow
def test_the_program_draws_them(trained_unet: tuple, tmp_path: pathlib.Path) -> None:
    run = shutil.copytree(trained_unet[1], tmp_path / "run")
    write_config(run, trained_unet[0])
    options = ("--mode=figures", f"--workdir={run}", "--config.figures.names=schedule,forward")
    said = program(*options).stdout
    assert "index.html" in said and (run / "figures" / "schedule.png").is_file()
    refused = program(*options[:2], "--config.figures.names=shedule", code=2)
    assert "Did you mean 'schedule'" in refused.stderr
