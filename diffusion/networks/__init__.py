"""Networks that map (x, t, condition) to an output; none knows a schedule."""

from types import MappingProxyType

from diffusion.networks.dit import DiT
from diffusion.networks.unet import UNet

NETWORKS = MappingProxyType({"unet": UNet, "dit": DiT})
