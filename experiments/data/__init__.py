"""Data sets: one module each, and what loads their batches."""
