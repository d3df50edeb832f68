"""Finished figures: data by one function each, drawn by plotly to explore and by matplotlib as its PNG twin.

In a notebook a figure is three outputs: the interactive chart, the picture with alternative text for readers
without JavaScript, and the caption with the conditions. The live views draw with the same functions.
"""

from labkit.figures.base import Figure
from labkit.figures.gap import gap

__all__ = ["Figure", "gap"]
