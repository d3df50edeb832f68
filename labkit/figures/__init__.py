"""Finished figures: data by one function each, drawn by plotly to explore and by matplotlib as its PNG twin.

In a notebook a figure is three outputs: the interactive chart, the picture with alternative text for readers
without JavaScript, and the caption with the conditions. The live views draw with the same functions.
"""

from labkit.figures.base import Figure
from labkit.figures.blocks import blocks
from labkit.figures.decide import forecast, promise
from labkit.figures.gap import gap
from labkit.figures.gauges import gauges
from labkit.figures.goodput import goodput
from labkit.figures.lanes import lanes
from labkit.figures.life import life
from labkit.figures.loops import answer_times, backlog
from labkit.figures.memory import kv_memory
from labkit.figures.migrate import gateway, shift
from labkit.figures.parallel import all_reduce, larger, ranks, splits
from labkit.figures.prefix import prefix
from labkit.figures.reuse import reuse, workloads
from labkit.figures.settings import settings
from labkit.figures.staircase import staircase
from labkit.figures.startup import startup
from labkit.figures.stream import stream

__all__ = [
    "Figure",
    "all_reduce",
    "answer_times",
    "backlog",
    "blocks",
    "forecast",
    "gap",
    "gateway",
    "gauges",
    "goodput",
    "kv_memory",
    "lanes",
    "larger",
    "life",
    "prefix",
    "promise",
    "ranks",
    "reuse",
    "settings",
    "shift",
    "splits",
    "staircase",
    "startup",
    "stream",
    "workloads",
]
