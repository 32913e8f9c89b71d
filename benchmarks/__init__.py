"""Timings against other implementations."""
