"""Layers and losses in forms that PyTorch differentiates correctly twice."""
