"""The mathematics of denoising diffusion models as pure functions of JAX arrays.

Nothing in this package reads a file, a flag or a config, and nothing takes a name where a function
would do: names become code in `experiments/build.py`. "DDPM Eq. n" is equation n of Ho, Jain and
Abbeel (2020), arXiv:2006.11239; "IDDPM" is Nichol and Dhariwal (2021), arXiv:2102.09672.
"""
