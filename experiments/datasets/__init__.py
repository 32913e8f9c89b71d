"""One module per family of data sets: how its files are read and how it is prepared.

Everything is written as array_record in the folder layout of tensorflow-datasets, without
TensorFlow; `experiments.data` reads it back.
"""
