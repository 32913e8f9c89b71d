"""Weights to and from diffusers and PyTorch themselves."""

import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

torch = pytest.importorskip("torch", reason="comparing with diffusers needs the parity extra")
diffusers = pytest.importorskip(
    "diffusers", reason="comparing with diffusers needs the parity extra"
)

from diffusers.training_utils import EMAModel  # noqa: E402

import diffusion.samplers  # noqa: E402
import diffusion.walk  # noqa: E402
from diffusion.networks.unet import UNet  # noqa: E402
from diffusion.spacings import uniform  # noqa: E402
from experiments import devices  # noqa: E402
from experiments.build import Experiment, build  # noqa: E402
from experiments.configs import celebahq256, cifar10, digits, image_folder  # noqa: E402
from experiments.files.parameters import params_from_tensors, tensors_from_params  # noqa: E402
from experiments.files.pytorch import read_torch  # noqa: E402
from experiments.state import load_ema  # noqa: E402
from experiments.weights import diffusers_config, export, importer, sources  # noqa: E402
from experiments.weights.unet_names import NAMINGS  # noqa: E402
from experiments.workdir.config import read_config  # noqa: E402
from tests.diffusion.walks import sample  # noqa: E402
from tests.fixtures.make_unet_diffusers import param_shapes  # noqa: E402
from tests.fixtures.published import NUM_STEPS, STEP, TIMESTEPS, noise  # noqa: E402
from tests.parity import pipelines  # noqa: E402

pytestmark = pytest.mark.parity


def full_width(name: str) -> tuple[Any, tuple[int, int, int]]:
    """The shipped config, the 256x256 network on 32x32 images with the same parameters."""
    if name == "cifar10":
        return cifar10.get_config(), (32, 32, 3)
    config = celebahq256.get_config()
    config.data = ConfigDict(dict(name="image_folder", path="", image_size=32))
    config.model.attention_resolutions = (2,)
    return config, (32, 32, 3)


@pytest.fixture(scope="module", params=["cifar10", "celebahq256"])
def published(request, tmp_path_factory) -> tuple[Any, Any, Experiment, Any]:
    """A DDPMPipeline with random weights at full width, and what conversion makes of it."""
    config, shape = full_width(request.param)
    network = build(config).method.chain.network
    theirs = pipelines.unet(network, shape)
    pipelines.randomize(theirs)
    scheduler = diffusers.DDPMScheduler(variance_type=config.variance.name)
    folder = tmp_path_factory.mktemp("published") / request.param
    diffusers.DDPMPipeline(theirs, scheduler).save_pretrained(folder)
    workdir = folder.with_name("run")
    importer.import_weights(str(folder), workdir, config, None)
    experiment = build(read_config(workdir))
    return theirs, scheduler, experiment, load_ema(experiment, workdir, devices.make_mesh()).params


def test_the_full_width_network_is_the_same_function(published) -> None:
    theirs, _, experiment, params = published
    x = noise(experiment.dataset.image_shape, 1)[0]
    expected = pipelines.predict(theirs, x, np.array(TIMESTEPS))
    with jax.default_matmul_precision("highest"):
        output = jax.jit(experiment.method.chain.network.apply)(
            {"params": params}, x, jnp.array(TIMESTEPS)
        )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count in (35_746_307, 113_673_219) and expected.std() > 0.3
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_the_full_width_chain_gives_the_same_pictures(published, monkeypatch) -> None:
    theirs, scheduler, experiment, params = published
    shape = experiment.dataset.image_shape
    draws = noise(shape, NUM_STEPS + 1)[:, :1]
    _, denoise, levels = experiment.method.chain.respaced(NUM_STEPS)

    def bound(x: jax.Array, t: jax.Array) -> Any:
        return denoise(params, x, t)

    table = jnp.asarray(draws)
    monkeypatch.setattr(diffusion.walk, "normal", lambda keys, t, shape: table[t - 1])
    keys = jax.random.split(jax.random.key(0), 1)
    actual = jax.jit(lambda: sample(diffusion.samplers.ancestral(levels), bound, keys, shape).x_0)()
    expected = pipelines.walk(theirs, scheduler, uniform(1000, NUM_STEPS).tolist(), draws)
    assert expected.std() > 0.3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)


def test_a_full_width_step_is_the_same(published) -> None:
    theirs, scheduler, experiment, params = published
    draws = noise(experiment.dataset.image_shape, 2)[:, :1]
    _, denoise, levels = experiment.method.chain.respaced(0)
    x_t, z = jnp.asarray(draws[0]), jnp.asarray(draws[1])

    @jax.jit
    def step(params: Any) -> jax.Array:
        def bound(x: jax.Array, t: jax.Array) -> Any:
            return denoise(params, x, t)

        t = jnp.int32(STEP)
        return diffusion.samplers.ancestral(levels).step(bound, x_t, t, lambda _: z, ())[0]

    scheduler.set_timesteps(1000)
    expected = pipelines.step(theirs, scheduler, STEP, draws[0], draws[1])
    np.testing.assert_allclose(step(params), expected, rtol=0, atol=1e-5)


SMALL = UNet(
    out_channels=3,
    channels=16,
    channel_multipliers=(1, 2),
    num_blocks=1,
    attention_resolutions=(8,),
    norm_groups=4,
)
COMPUTED = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "norm_eps": 1e-3,
    "attention_head_dim": 8,
}
REFUSED = {
    "center_input_sample": True,
    "mid_block_scale_factor": 2.0,
    "act_fn": "relu",
    "attn_norm_num_groups": 2,
}


def otherwise(**fields: Any) -> tuple[Any, Any]:
    """diffusers' SMALL, and what the same weights are there under other fields of its config."""
    config = diffusers_config.unet_config(SMALL, (16, 16, 3))
    one = diffusers.UNet2DModel(**config).eval()
    other = diffusers.UNet2DModel(**config | fields).eval()
    pipelines.randomize(one)
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.mark.parametrize("field", [*COMPUTED, *REFUSED])
def test_a_field_that_is_looked_at_gives_another_function(field: str) -> None:
    """With the same weights, which load under either value without a word."""
    one, other = otherwise(**{field: (COMPUTED | REFUSED)[field]})
    x, t = noise((16, 16, 3), 1)[0], np.array(TIMESTEPS)
    expected, actual = pipelines.predict(one, x, t), pipelines.predict(other, x, t)
    assert np.abs(actual - expected).max() > 1e-3 * expected.std()


@pytest.mark.parametrize("field", COMPUTED)
def test_a_field_of_diffusers_is_computed(field: str, tmp_path: pathlib.Path) -> None:
    _, theirs = otherwise(**{field: COMPUTED[field]})
    theirs.save_pretrained(tmp_path)
    source = sources.read(str(tmp_path))
    assert source.model[field] == COMPUTED[field]
    same_function(theirs, source.model, source.tensors)


def same_function(theirs: Any, fields: Mapping[str, Any], tensors: Any) -> None:
    """The network of the fields, filled from the tensors, is `theirs`."""
    shape = (16, 16, 3)
    ours = UNet(3, **{name: value for name, value in fields.items() if name != "class_conditional"})
    shapes, levels = param_shapes(ours, shape), len(ours.channel_multipliers)
    params = params_from_tensors(tensors, NAMINGS["diffusers"], shapes, levels)
    x, t = noise(shape, 1)[0], np.array(TIMESTEPS)
    with jax.default_matmul_precision("highest"):
        actual = jax.jit(ours.apply)({"params": params}, x, t)
    expected = pipelines.predict(theirs, x, t)
    assert expected.std() > 0.3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_a_checkpoint_of_diffusers_training_script_is_both_its_networks(
    tmp_path: pathlib.Path,
) -> None:
    """None of the five fields told, as the script tells none, and back again for diffusers."""
    theirs = diffusers.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    pipelines.randomize(theirs)
    averaged = EMAModel(
        theirs.parameters(), model_cls=diffusers.UNet2DModel, model_config=theirs.config
    )
    with torch.no_grad():
        for value in theirs.parameters():
            value.mul_(0.9)
    folder = tmp_path / "checkpoint-500"
    theirs.save_pretrained(folder / "unet")
    averaged.save_pretrained(folder / "unet_ema")

    config = image_folder.get_config()  # which leaves open what the weights say
    importer.import_weights(str(folder), tmp_path / "run", config, 500)
    experiment = build(read_config(tmp_path / "run"))
    for which in ("raw", "ema"):
        out = tmp_path / which
        export.write_diffusers(experiment, tmp_path / "run", out, which)
        source = sources.read(str(out))
        assert source.model == sources.read(str(folder)).model
        again = diffusers.UNet2DModel.from_pretrained(out / "unet").eval()
        known = theirs.state_dict()
        if which == "ema":
            known = diffusers.UNet2DModel.from_pretrained(folder / "unet_ema").state_dict()
        for name, value in again.state_dict().items():
            torch.testing.assert_close(value, known[name], rtol=0, atol=0)
        same_function(again, source.model, source.tensors)


def test_what_is_absent_is_read_as_diffusers_reads_it() -> None:
    told = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    defaults = diffusers_config.SHARED | {"attention_head_dim": diffusers_config.HEAD_DIM}
    defaults |= {name: field.default for name, field in diffusers_config.UNET.items()}
    assert defaults == {name: told[name].default for name in defaults}


def test_the_names_are_those_of_diffusers() -> None:
    shapes = param_shapes(SMALL, (16, 16, 3))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    ours = tensors_from_params(params, NAMINGS["diffusers"], 2)
    theirs = pipelines.unet(SMALL, (16, 16, 3)).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_the_restricted_reader_reads_what_torch_writes(legacy: bool, tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    convolution = torch.randn(2, 3, 5, 5, generator=generator)
    state = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with metadata
    state |= {
        "transposed": base.T,
        "shared": base[2:, 1:],
        "last": convolution.to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base),
        "half": base.half(),
        "brain": base.bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    tensors = read_torch(path)
    assert list(tensors) == list(state)
    for name, value in state.items():
        assert tensors[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(
            tensors[name].astype(np.float64), value.detach().to(torch.float64).numpy()
        )


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_module_is_refused(legacy: bool, tmp_path) -> None:
    torch.save(
        torch.nn.Linear(3, 2), tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_torch(tmp_path / "model.pt")


CASES: dict[str, dict[str, dict]] = {
    "digits": {},
    "fixed variance, v": dict(
        variance=dict(name="fixed_small"),
        parameterization=dict(name="v"),
        loss=dict(name="simple", weighting=dict(name="uniform")),
    ),
    "cosine": dict(schedule=dict(name="cosine", num_timesteps=1000)),
}


@pytest.mark.parametrize("case", CASES)
def test_diffusers_opens_what_is_exported_and_walks_the_same_chain(
    case: str, tmp_path: pathlib.Path, monkeypatch
) -> None:
    config = digits.get_config()
    config.model.channels, config.model.norm_groups = 16, 4
    for name, choice in CASES[case].items():
        config[name] = ConfigDict(choice)
    experiment = build(config)
    shape = experiment.dataset.image_shape
    theirs = pipelines.unet(experiment.method.chain.network, shape)
    pipelines.randomize(theirs)
    original = tmp_path / "original"
    theirs.save_pretrained(original)
    importer.import_weights(str(original), tmp_path / "run", config, None)
    export.write_diffusers(experiment, tmp_path / "run", tmp_path / "model", "ema")

    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "model")
    assert type(pipeline.scheduler) is diffusers.DDPMScheduler
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(pipeline.unet.state_dict()[name], value, rtol=0, atol=0)
    assert len(pipeline(batch_size=2, num_inference_steps=2).images) == 2

    params = load_ema(experiment, tmp_path / "run", devices.make_mesh()).params
    draws = noise(shape, NUM_STEPS + 1)
    _, denoise, levels = experiment.method.chain.respaced(NUM_STEPS)
    table = jnp.asarray(draws)
    monkeypatch.setattr(diffusion.walk, "normal", lambda keys, t, shape: table[t - 1])
    keys = jax.random.split(jax.random.key(0), 2)
    actual = jax.jit(
        lambda: (
            sample(
                diffusion.samplers.ancestral(levels),
                lambda x, t: denoise(params, x, t),
                keys,
                shape,
            ).x_0
        )
    )()
    timesteps = uniform(1000, NUM_STEPS).tolist()
    expected = pipelines.walk(pipeline.unet.eval(), pipeline.scheduler, timesteps, draws)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)
