"""Many runs: one watched step by step, arms and seeds side by side, and those that are recorded."""

from coupled_adam.extras import needs

with needs("cli"):
    from coupled_adam.experiments.records import (
        RECORDS,
        WANTED,
        Record,
        data_folder,
        outstanding,
        read_record,
        recorded_runs,
        write_record,
    )
    from coupled_adam.experiments.sweep import (
        Comparison,
        Outcome,
        compare,
        comparison,
        run_name,
        run_sweep,
    )
    from coupled_adam.experiments.trajectory import Trajectory, shares_by_step, watch

__all__ = [
    "RECORDS",
    "WANTED",
    "Comparison",
    "Outcome",
    "Record",
    "Trajectory",
    "compare",
    "comparison",
    "data_folder",
    "outstanding",
    "read_record",
    "recorded_runs",
    "run_name",
    "run_sweep",
    "shares_by_step",
    "watch",
    "write_record",
]
