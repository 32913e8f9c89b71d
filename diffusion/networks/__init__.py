"""Networks: of (x, t, condition) to an output, and autoencoders; none knows a schedule."""

from types import MappingProxyType

from diffusion.networks.autoencoder import MLPVAE, ConvVAE
from diffusion.networks.dit import DiT
from diffusion.networks.unet import UNet

NETWORKS = MappingProxyType({"unet": UNet, "dit": DiT})
AUTOENCODERS = MappingProxyType({"conv_vae": ConvVAE, "mlp_vae": MLPVAE})
