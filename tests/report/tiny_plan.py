"""A model that trains in a moment, and runs that are only pretended."""

import math

import pandas as pd

from coupled_adam.experiments.sweep import Outcome
from coupled_adam.report import experiment
from coupled_adam.report.experiment import Experiment

ADAM, COUPLED = "adamw", "coupled"
SHAPE = {"layers": 1, "heads": 2, "width": 16, "context": 8}


class Machine:
    """Runs that take so many seconds each, and whose loss is a parabola of the rate."""

    def __init__(self, seconds, best, diverging=()):
        self.now, self.seconds, self.best, self.diverging = 0.0, seconds, best, diverging
        self.made = []

    def clock(self):
        return self.now

    def run_sweep(self, jobs, folder, *, measure, workers):
        outcomes = []
        for config, _ in jobs:
            self.now += self.seconds
            self.made.append(config.optimizer)
            off = math.log2(config.embedding_multiplier / self.best[config.optimizer])
            loss = 5 + off**2 + 0.01 * config.seed
            rows = [("loss", "tuning", loss), ("loss", "report", loss)]
            measured = pd.DataFrame(rows, columns=["measure", "set", "value"])
            at = 3 if (config.optimizer, config.seed) in self.diverging else None
            outcomes.append(
                Outcome(config, "", pd.DataFrame(), at, measured=None if at else measured)
            )
        return outcomes


def on(machine, plan, corpus, out, monkeypatch, **options):
    monkeypatch.setattr(experiment, "run_sweep", machine.run_sweep)
    return Experiment(plan, corpus, out, clock=machine.clock, **options).run()
