"""Pictures: tables and arrays in, a Matplotlib figure out, which is returned and not shown."""

from coupled_adam.extras import needs

with needs("book"):
    from coupled_adam.plots.ablations import by_number, ways_of_groups
    from coupled_adam.plots.cloud import (
        along_the_drift,
        cosine_histogram,
        cosines_by_kinship,
        from_the_side,
        mean_cosine_of_shift,
        repairs,
    )
    from coupled_adam.plots.cost import (
        memory_of_step,
        parts_of_step,
        share_of_training,
        time_ratios,
    )
    from coupled_adam.plots.drift import (
        distance_of_mean,
        drift_shares,
        foretold,
        second_moments_by_process,
        summed_updates,
        typical_steps,
    )
    from coupled_adam.plots.evidence import (
        against_memory,
        gains_by_setting,
        in_rows,
        tuning_curves,
        within_memory,
    )
    from coupled_adam.plots.frequency import (
        TokenTrace,
        fit_by_step,
        second_moments_by_frequency,
        step_size_against_frequency,
        token_traces,
        zipf,
    )
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
        shared_second_moment,
    )
    from coupled_adam.plots.scale import by_size, loss_by_frequency, path_of_mean, run_times
    from coupled_adam.plots.uses import beside_baselines

__all__ = [
    "TokenTrace",
    "after_a_kick",
    "against_memory",
    "along_the_drift",
    "beside_baselines",
    "bowl_paths",
    "by_number",
    "by_size",
    "clouds",
    "clouds_before_and_after",
    "cosine_histogram",
    "cosines_by_kinship",
    "curves",
    "distance_of_mean",
    "drift_shares",
    "fit_by_step",
    "foretold",
    "from_the_side",
    "gains_by_setting",
    "head_to_tail",
    "in_rows",
    "intervals",
    "learning_rates",
    "lengths_against_frequency",
    "loss_by_frequency",
    "mean_cosine_of_shift",
    "memory_of_step",
    "parts_of_step",
    "path_of_mean",
    "repairs",
    "run_times",
    "second_moments_by_frequency",
    "second_moments_by_process",
    "share_of_training",
    "shared_second_moment",
    "step_by_noise",
    "step_by_row",
    "step_size_against_frequency",
    "summed_updates",
    "time_ratios",
    "token_traces",
    "tuning_curves",
    "typical_steps",
    "walk",
    "ways_of_groups",
    "within_memory",
    "zipf",
]
