"""Numbers that compare sets of images through their features, on the host in float64.

What a feature is does not matter here: rows of an array, one per image, from any network.
"""
