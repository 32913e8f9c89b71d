"""The DiT and diffusers' DiTTransformer2DModel are the same function of the same weights."""

from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comparing with diffusers needs the parity extra")
pytest.importorskip("diffusers", reason="comparing with diffusers needs the parity extra")

from diffusers import DiTTransformer2DModel  # noqa: E402
from diffusers.models.embeddings import PatchEmbed  # noqa: E402

from diffusion.networks.dit import SINUSOIDS, Block, DiT, Settings, position_embedding  # noqa: E402
from tests.fixtures.make_unet_diffusers import param_shapes, random_params  # noqa: E402

pytestmark = pytest.mark.parity

SIZE, CHANNELS, CLASSES, PATCH, WIDTH, HEADS = 8, 3, 10, 2, 32, 4
DEPTH = 2
MODEL = DiT(6, PATCH, WIDTH, DEPTH, HEADS, num_classes=CLASSES, label_dropout=0.1)
TIMESTEPS, LABELS = np.array([3, 400, 7]), np.array([1, 9, CLASSES])


def their_model() -> Any:
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=CHANNELS,
        out_channels=MODEL.out_channels,
        num_layers=DEPTH,
        sample_size=SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    return model.eval()


def linear(layer: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}


def block_weights(block: dict[str, Any], params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights of their block, each of which has an embedding of t and label of its own."""
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    weights = linear(block["modulation"], "norm1.linear")
    for ours, theirs in names.items():
        weights |= linear(block[ours], f"attn1.{theirs}")
    weights |= linear(block["mlp_in"], "ff.net.0.proj") | linear(block["mlp_out"], "ff.net.2")
    cos_first = np.roll(params["temb"]["dense0"]["kernel"], SINUSOIDS // 2, axis=0)
    first = {"kernel": cos_first, "bias": params["temb"]["dense0"]["bias"]}
    weights |= linear(first, "norm1.emb.timestep_embedder.linear_1")
    weights |= linear(params["temb"]["dense1"], "norm1.emb.timestep_embedder.linear_2")
    table = params["class_embedding"]["embedding"]
    return weights | {"norm1.emb.class_embedder.embedding_table.weight": table}


def load(module: Any, weights: dict[str, np.ndarray]) -> Any:
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    assert not unexpected and all("pos_embed" in name for name in missing), (missing, unexpected)
    return module.double()  # so that the difference is our rounding only


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_params(param_shapes(MODEL, (SIZE, SIZE, CHANNELS)))


def test_a_block_equals_diffusers(params: dict[str, Any]) -> None:
    block = load(their_model().transformer_blocks[1], block_weights(params["block_1"], params))
    tokens = np.random.default_rng(0).normal(size=(3, 16, WIDTH)).astype(np.float32)
    t, labels = torch.from_numpy(TIMESTEPS), torch.from_numpy(LABELS)
    with torch.no_grad():
        expected = block(torch.from_numpy(tokens).double(), timestep=t, class_labels=labels)
        condition = block.norm1.emb(t, labels, hidden_dtype=torch.float64)
        condition = torch.nn.functional.silu(condition).float().numpy()
    ours = Block(Settings(HEADS, 4.0, 0.0, np.float32))
    with jax.default_matmul_precision("highest"):
        output = jax.jit(ours.apply, static_argnums=3)(
            {"params": params["block_1"]}, tokens, condition, False
        )
    assert float(abs(expected.numpy() - tokens).max()) > 0.3  # the gates are open
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_the_whole_network_equals_diffusers(params: dict[str, Any]) -> None:
    weights = linear(params["modulation_out"], "proj_out_1")
    patches = params["patch_in"]["kernel"].reshape(PATCH, PATCH, CHANNELS, WIDTH)
    weights |= {"pos_embed.proj.weight": patches.transpose(3, 2, 0, 1)}
    weights |= {"pos_embed.proj.bias": params["patch_in"]["bias"]}
    weights |= linear(params["patch_out"], "proj_out_2")
    for i in range(DEPTH):
        for name, value in block_weights(params[f"block_{i}"], params).items():
            weights[f"transformer_blocks.{i}.{name}"] = value
    theirs = load(their_model(), weights)
    x = np.random.default_rng(0).normal(size=(3, SIZE, SIZE, CHANNELS)).astype(np.float32)
    with torch.no_grad():
        images = torch.from_numpy(x).double().permute(0, 3, 1, 2)
        t, labels = torch.from_numpy(TIMESTEPS), torch.from_numpy(LABELS)
        expected = theirs(images, t, labels).sample.permute(0, 2, 3, 1).numpy()
    with jax.default_matmul_precision("highest"):
        output = jax.jit(MODEL.apply)({"params": params}, x, TIMESTEPS, LABELS)
    assert 0.3 < expected.std() < 3.0
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_the_position_embedding_equals_diffusers() -> None:
    theirs = PatchEmbed(height=12, width=12, patch_size=2, in_channels=3, embed_dim=WIDTH)
    scale = theirs.base_size / 6  # theirs counts in sixths of the image
    assert scale == 1.0
    np.testing.assert_allclose(
        theirs.pos_embed[0].numpy(), position_embedding(6, 6, WIDTH), rtol=0, atol=1e-5
    )
