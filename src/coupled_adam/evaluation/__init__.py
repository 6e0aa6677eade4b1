"""What a run is worth: a run folder in, its measures out."""

from coupled_adam.extras import needs

with needs("cli"):
    from coupled_adam.evaluation.downstream import LabelledTexts, read_labelled
    from coupled_adam.evaluation.drift import Drift, cosine, displacement_shares, measure_drift
    from coupled_adam.evaluation.losses import (
        FREQUENCY_BORDERS,
        TokenLosses,
        loss_by_frequency,
        token_losses,
    )
    from coupled_adam.evaluation.run import Evaluation, evaluate
    from coupled_adam.evaluation.table import Measure, long_table
    from coupled_adam.evaluation.words import (
        WORD_PAIRS,
        read_analogies,
        read_word_pairs,
        word_pair_files,
        word_similarity,
    )

__all__ = [
    "FREQUENCY_BORDERS",
    "WORD_PAIRS",
    "Drift",
    "Evaluation",
    "LabelledTexts",
    "Measure",
    "TokenLosses",
    "cosine",
    "displacement_shares",
    "evaluate",
    "long_table",
    "loss_by_frequency",
    "measure_drift",
    "read_analogies",
    "read_labelled",
    "read_word_pairs",
    "token_losses",
    "word_pair_files",
    "word_similarity",
]
