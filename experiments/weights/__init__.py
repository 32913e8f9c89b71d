"""Weights that other programs wrote, in this network's names, and the other way round."""
