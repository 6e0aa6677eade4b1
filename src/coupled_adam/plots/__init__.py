"""Pictures: tables and arrays in, one figure out; every function shows it and returns nothing."""

from coupled_adam.plots.drift import distance_of_mean, drift_shares, foretold
from coupled_adam.plots.runs import (
    clouds,
    curves,
    intervals,
    learning_rates,
    lengths_against_frequency,
    moment_against_frequency,
)
from coupled_adam.plots.style import COLOURS, MARKERS, NAMES, panels

__all__ = [
    "COLOURS",
    "MARKERS",
    "NAMES",
    "clouds",
    "curves",
    "distance_of_mean",
    "drift_shares",
    "foretold",
    "intervals",
    "learning_rates",
    "lengths_against_frequency",
    "moment_against_frequency",
    "panels",
]
