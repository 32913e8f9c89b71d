"""One config per data set, each a set of changes to `base`; ablations are further changes."""
