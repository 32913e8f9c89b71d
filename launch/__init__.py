"""Launching runs, here and on clusters: builds commands for experiments.main, loads no engine."""
