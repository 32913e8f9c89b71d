"""The program around the mathematics: configs, data, training, sampling, evaluation."""
