"""Coresets joined with network pruning, over a grid of ratios and amounts."""
