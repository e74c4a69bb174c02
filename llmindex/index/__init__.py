"""Nearest neighbours, derived from the store and rebuilt from it at will."""
