"""Symmetric matrices on disk, in tiles of their lower triangle."""
