"""The paper's figures, and others that people look at, of any model: --mode=figures."""
