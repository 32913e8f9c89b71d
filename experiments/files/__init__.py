"""Bytes on disk: whole files, arrays, restricted pickles, parameters."""
