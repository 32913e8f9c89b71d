"""What config.evaluate.metrics names."""
