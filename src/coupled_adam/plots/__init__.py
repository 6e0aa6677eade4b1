"""Pictures: tables and arrays in, one figure out; every function shows it and returns nothing."""

from coupled_adam.plots.drift import distance_of_mean, drift_shares, foretold
from coupled_adam.plots.gradients import (
    after_a_kick,
    bowl_paths,
    clouds_before_and_after,
    head_to_tail,
    step_by_noise,
    step_by_row,
    walk,
)
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
    "after_a_kick",
    "bowl_paths",
    "clouds",
    "clouds_before_and_after",
    "curves",
    "distance_of_mean",
    "drift_shares",
    "foretold",
    "head_to_tail",
    "intervals",
    "learning_rates",
    "lengths_against_frequency",
    "moment_against_frequency",
    "panels",
    "step_by_noise",
    "step_by_row",
    "walk",
]
