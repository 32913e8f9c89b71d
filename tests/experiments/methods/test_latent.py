"""Diffusion of the latents of a VAE: the seam, what is stored of the VAE, and the bound of both."""

import functools
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments
from diffusion import thresholds
from diffusion.forward import at
from diffusion.parameterizations import PARAMETERIZATIONS
from diffusion.reverse import predict
from diffusion.structs import Process
from diffusion.vae import elbo_terms
from experiments import build as building
from experiments import devices, images, train
from experiments.build import build
from experiments.data.dataset import Encoded, load_in_memory, read_images
from experiments.data.fashion_mnist import fashion_mnist
from experiments.files.atomic import read_json
from experiments.methods import latent
from experiments.methods.latent import ENCODERS, kept, measure, read_vae
from experiments.methods.method import Encoder, pixels
from experiments.metrics import elbo
from experiments.metrics.metric import Context
from experiments.modes import checked
from experiments.state import init_state, load_ema
from experiments.weights import export
from experiments.workdir.origin import Origin
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from tests.diffusion.gaussian import exact_variance, x_0_given_x_t
from tests.experiments import modes

Make = Callable[[], ConfigDict]


@pytest.fixture(scope="module")
def of_latents(tiny: Make, vae_run: pathlib.Path) -> Make:
    """Makes a config of a small diffusion model of the VAE's latents."""

    def make() -> ConfigDict:
        config = tiny()
        config.encoder = ConfigDict(
            dict(name="vae", workdir=str(vae_run), identity="", shift=(), scale=())
        )
        config.sample.threshold = ConfigDict(dict(name="none"))
        config.evaluate.clip_denoised = False
        config.evaluate.metrics = "latent_bound"
        return config

    return make


@pytest.fixture(scope="module")
def run(of_latents: Make, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("latents")
    assert train.train(build(of_latents()), workdir) is Outcome.FINISHED
    return workdir


def trained_steps(config: ConfigDict, workdir: pathlib.Path) -> Any:
    assert train.train(build(config), workdir) is Outcome.FINISHED
    return load_ema(build(config), workdir, devices.make_mesh()).params


def identity_encoder(dataset: Any, /) -> Encoder:
    """Pixels as a trained encoder would have them: floats, kept in memory."""
    plain = pixels(dataset)
    encode = plain.encode
    return Encoder(
        shape=dataset.image_shape,
        keep=encode,
        draw=lambda found, keys: found,
        encode=encode,
        decode=lambda x: x,
        in_memory=lambda source: Encoded(kept(encode, source), source.labels),
    )


def test_an_encoder_that_changes_nothing_is_pixel_diffusion_bit_for_bit(
    tiny: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same training, samples and bound; through the cache in memory to the last digit."""
    monkeypatch.setattr(building, "ENCODERS", {**ENCODERS, "identity": identity_encoder})
    plain = trained_steps(tiny(), tmp_path / "pixels")
    for in_memory in (True, False):
        config = tiny()
        config.encoder = ConfigDict(dict(name="identity"))
        config.loader.in_memory = in_memory
        config.evaluate.metrics = "bpd"
        folder = tmp_path / f"identity{in_memory}"
        found = trained_steps(config, folder)
        if not in_memory:
            jax.tree.map(np.testing.assert_array_equal, found, plain)
        # What the compiler makes of a program that begins with floats rounds otherwise.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, plain)
    bits = modes.evaluate(build(config), folder)["bpd"]["bits_per_dim"]
    pixel_config = tiny()
    pixel_config.evaluate.metrics = "bpd"
    assert bits == modes.evaluate(build(pixel_config), tmp_path / "pixels")["bpd"]["bits_per_dim"]
    samples = experiments.load(tmp_path / "pixels").sample(3)
    np.testing.assert_array_equal(experiments.load(folder).sample(3), samples)


LATE = [
    ("model.label_dropout", 0.1, "label_dropout = 0.1"),
    ("train.num_steps", 7, "train.num_steps = 7 must be a multiple"),
    ("train.accumulate_steps", 3, "accumulate_steps = 3 does not divide"),
    ("sample.guidance_scale", 2.0, "guidance_scale = 2 needs a network"),
    ("figures.names", "samples,inpainting", "asks for inpainting, which this model cannot have"),
]


@pytest.mark.parametrize(("field", "value", "words"), LATE)
def test_nothing_is_measured_before_the_config_is_in_order(
    field: str, value: Any, words: str, of_latents: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> None:
        raise AssertionError("latents were measured first")

    monkeypatch.setattr(latent, "measure", measured)
    config, (section, name) = of_latents(), field.split(".")
    with pytest.raises(AssertionError):
        build(config)
    config[section][name] = value
    with pytest.raises(ValueError, match=words):
        checked(config, ("train", "sample", "figures"))


def test_latents_have_mean_0_and_variance_1_over_the_data(of_latents: Make) -> None:
    """Drawn ones, channel by channel: what the chain is meant for."""
    experiment = build(of_latents())
    encoder, source = experiment.encoder, experiment.dataset.open("train")
    assert encoder.shape == (4, 4, 2)
    memory = encoder.in_memory(load_in_memory(source))
    assert memory.images.shape == (len(source), 4, 4, 4) and memory.images.dtype == np.float32
    keys = jax.random.split(jax.random.key(0), len(source))
    x_0 = np.asarray(encoder.draw(jnp.asarray(memory.images), keys), np.float64)
    np.testing.assert_allclose(x_0.mean((0, 1, 2)), 0.0, atol=0.02)
    np.testing.assert_allclose(x_0.std((0, 1, 2)), 1.0, atol=0.02)
    pictures = read_images(source, 0, 20)["image"]
    means = encoder.encode(jnp.asarray(pictures))
    many = jnp.mean(
        jax.vmap(lambda k: encoder.draw(encoder.keep(jnp.asarray(pictures)), k))(
            jax.random.split(jax.random.key(1), (2000, 20))
        ),
        axis=0,
    )
    np.testing.assert_allclose(many, means, atol=0.15)


def test_what_is_drawn_is_decoded_by_the_vae(of_latents: Make, run: pathlib.Path) -> None:
    model = experiments.load(run)
    drawn = model.sample(5)
    assert drawn.shape == (5, 8, 8, 1) and drawn.dtype == np.uint8
    encoder = model.experiment.encoder
    vae, params = encoder.latents.vae, encoder.latents.params
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
    z = x / np.asarray(encoder.latents.scale) + np.asarray(encoder.latents.shift)
    expected = vae.likelihood.mean(vae.decode(params, jnp.asarray(z)))
    np.testing.assert_allclose(encoder.decode(jnp.asarray(x)), expected, atol=1e-5)


def test_the_identity_of_the_vae_is_everywhere(of_latents: Make, run: pathlib.Path) -> None:
    config = read_json(run / "config.json")
    identity = config["encoder"]["identity"]
    assert len(identity) == 12 and len(config["encoder"]["scale"]) == 2
    saved = load_ema(experiments.load(run).experiment, run, devices.make_mesh())
    assert saved.step == 8
    modes.sample(experiments.load(run).experiment, run)
    told = {"name": "vae", "identity": identity}
    assert read_json(run / "samples" / "samples.json")["encoder"] == told
    values = modes.evaluate(experiments.load(run).experiment, run)
    assert set(values) == {"latent_bound"}
    assert read_results(run)["latent_bound"]["protocol"]["encoder"] == told


def test_measuring_again_finds_the_same(vae_run: pathlib.Path, of_latents: Make) -> None:
    """From the file, and anew."""
    dataset = build(of_latents()).dataset
    first = measure(str(vae_run), dataset)
    path = vae_run / "latents.json"
    content = path.read_text()
    path.unlink()
    assert measure(str(vae_run), dataset) == first
    assert path.read_text() == content


def test_a_training_goes_on_with_the_vae_moved(
    of_latents: Make, vae_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = of_latents()
    config.train.num_steps = 4
    train.train(build(config), tmp_path / "run")
    shutil.copytree(vae_run, tmp_path / "moved")
    config.encoder.workdir = str(tmp_path / "moved")
    config.train.num_steps = 8
    assert train.train(build(config), tmp_path / "run") is Outcome.FINISHED
    model = experiments.load(tmp_path / "run", encoder=vae_run)
    assert model.step == 8


def test_another_vae_is_refused_by_its_hash(
    of_latents: Make, tiny_vae: Make, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = tiny_vae()
    other.seed = 1
    train.train(build(other), tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"encoder.identity = .* holds [0-9a-f]{12}, [0-9a-f]{12}. Name the"
    ):
        experiments.load(run, encoder=tmp_path / "other")
    config = of_latents()
    config.encoder.workdir = str(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a run under another config:\n  encoder.identity"):
        load_ema(build(config), run, devices.make_mesh())


def test_what_is_no_vae_is_refused(of_latents: Make, trained: Any, tmp_path: pathlib.Path) -> None:
    for folder, words in (
        (
            tmp_path / "none",
            "holds no trained VAE: name the working directory of one. Train one first",
        ),
        (trained[1], "holds a model of the method 'diffusion'"),
    ):
        config = of_latents()
        config.encoder.workdir = str(folder)
        with pytest.raises(ValueError, match=words):
            build(config)


def test_a_vae_of_other_images_is_refused(of_latents: Make) -> None:
    config = of_latents()
    with pytest.raises(ValueError, match="holds a VAE of 'digits', and config.data.name"):
        read_vae(config.encoder.workdir, fashion_mnist(pad_to=32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(threshold=dict(name="clip")), "config.sample.threshold.name = 'clip' keeps"),
        (dict(clip_denoised=True), "config.evaluate.clip_denoised = True keeps"),
        (dict(metrics="bpd"), "bpd is of the levels of pixels"),
        (dict(metrics="bpd_fast"), "bpd_fast is of the levels of pixels"),
        (dict(metrics="ode"), "ode is of the levels of pixels"),
        (dict(validate_every=4), "validate_with = 'bpd_fast' is of pixels"),
        (dict(names="inpainting"), "inpainting, which this model cannot have"),
    ],
)
def test_what_is_of_pixels_is_refused(of_latents: Make, change: dict, words: str) -> None:
    config = of_latents()
    for section in ("sample", "evaluate", "train", "figures"):
        for name, value in change.items():
            if name in config[section]:
                config[section][name] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=words):
        checked(config, ("evaluate", "figures"))


def test_a_vector_of_latents_is_refused_by_networks_of_images(
    of_latents: Make, tiny_vae: Make, tmp_path: pathlib.Path
) -> None:
    vae = tiny_vae()
    vae.model = ConfigDict(
        dict(name="mlp_vae", hidden_sizes=(8,), latent_size=3, dropout=0.0, dtype="float32")
    )
    train.train(build(vae), tmp_path)
    config = of_latents()
    config.encoder.workdir = str(tmp_path)
    with pytest.raises(ValueError, match=r"latents of shape \(3,\), a vector"):
        build(config)


def test_the_bound_of_both_is_a_likelihood_where_that_is_known(
    of_latents: Make, vae_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Of a chain that knows z to be N(0, I) it is the ELBO of the VAE, whatever shift and scale.

    The chain's latents, (z - shift) * scale, are then normal, and its best step back is known.
    """
    config = of_latents()
    shift, scale = np.array([2.0, -1.0]), np.array([2.0, 1.5])
    identity = build(config).encoder.protocol["encoder"]["identity"]
    config.encoder.update(identity=identity, shift=(*shift,), scale=(*scale,))
    config.evaluate.update(num_draws=4, batch_size=96)
    experiment = build(config)
    chain = experiment.method.chain
    known = Process(chain.process.schedule, PARAMETERIZATIONS["x_0"], exact_variance(scale))

    def denoise(params: Any, x_t: jax.Array, t: jax.Array, **inputs: Any) -> Any:
        x_0, _ = x_0_given_x_t(at(known.schedule, t, x_t), x_t, -shift * scale, scale)
        return predict(known, x_0, x_t, at(known.schedule, t, x_t), threshold=thresholds.none)

    method = experiment.method._replace(chain=chain._replace(denoise=denoise))
    source, count = experiment.dataset.open("test"), 96
    context = Context(
        *(experiment._replace(method=method), tmp_path, devices.make_mesh(), 0, {}),
        *(source, count, "", Origin("ema", "")),
    )
    both = elbo.latent_bound(context).values["bits_per_dim"]

    vae, params = experiment.encoder.latents.vae, experiment.encoder.latents.params
    pictures = images.to_model(jnp.asarray(read_images(source, 0, count)["image"]), 17)
    q = vae.encode(params, pictures)
    decode = functools.partial(vae.decode, params)
    eps = jax.random.normal(jax.random.key(3), (100, *q.mean.shape))
    terms = jax.lax.map(lambda e: elbo_terms(vae.likelihood, decode, pictures, q, e), eps)
    expected = np.asarray(terms.reconstruction + terms.kl).mean() / (64 * np.log(2))
    assert both["value"] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("name", ["fixed_small", "fixed_large"])
def test_a_fixed_variance_is_beta_0_where_l_0_is_a_density(
    of_latents: Make, tiny: Make, name: str
) -> None:
    """And for pixels, whose L_0 is of levels, the repeat of the original."""
    for make, expected in ((of_latents, "log_beta"), (tiny, "posterior_log_variance")):
        config = make()
        config.variance = ConfigDict(dict(name=name))
        process = build(config).method.chain.process
        variance, first = process.variance, at(process.schedule, jnp.asarray(0), jnp.zeros(1))
        assert variance.log_variance(first, None, jnp.zeros(1)) == getattr(first, expected)


def test_initial_state_has_no_parameters_of_the_vae(of_latents: Make, tiny: Make) -> None:
    """The VAE is frozen: nothing of it is trained, averaged or saved."""
    experiment = build(of_latents())
    state = jax.eval_shape(lambda: init_state(experiment))
    names = str(jax.tree_util.tree_flatten_with_path(state.params)[0])
    assert "encoder" not in names and "decoder" not in names


def test_it_is_not_written_for_diffusers(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="this model is of latents"):
        export.write_diffusers(experiments.load(run).experiment, run, tmp_path / "out", "ema")
