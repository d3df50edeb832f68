"""Experiments seen while they run: the frame with its controls, and the charts that it holds."""
