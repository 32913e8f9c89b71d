"""Generative models, as the loop, the sampler and the metrics see them."""
