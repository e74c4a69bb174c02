"""Vectors and columns on disk: the truth that everything else derives from."""
