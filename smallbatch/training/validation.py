"""The loss on the frozen validation set: every token once, weighted by token, the same for every batch size."""

from dataclasses import dataclass

import numpy as np

from smallbatch.data.dataset import Dataset
from smallbatch.data.stream import validation_batches
from smallbatch.model import decoder
from smallbatch.training.program import Programs
from smallbatch.training.train_step import TrainState
from smallbatch.units import bits_per_byte


@dataclass(frozen=True)
class Score:
    """The result of a validation pass."""

    loss_nats: float  # mean per token
    bits_per_byte: float | None  # None if the bytes of the text are unknown, or the tokenizer loses some
    average_loss_nats: float | None = None  # of the average of the weights, if one is kept
    loss_se_nats: float | None = None  # standard error of loss_nats over the sequences; None for one sequence


def validate(programs: Programs, state: TrainState, dataset: Dataset) -> Score:
    """Score the validation split, with the average of the weights too where one is kept."""
    nats_S, targets_S = _nats(programs, programs.evaluation_params(state), dataset)
    nats = float(nats_S.sum())
    average = programs.averaged_params(state)
    targets = len(dataset.validation) - 1
    bytes_ = None if dataset.meta.text_lost_frac else dataset.meta.validation.bytes
    return Score(
        loss_nats=nats / targets,
        bits_per_byte=None if bytes_ is None else bits_per_byte(nats, bytes_),
        average_loss_nats=None if average is None else float(_nats(programs, average, dataset)[0].sum()) / targets,
        loss_se_nats=standard_error(nats_S, targets_S),
    )


def standard_error(nats_S: np.ndarray, targets_S: np.ndarray) -> float | None:
    """Return the standard error of the mean loss per token over S sequences, float64; None for one sequence.

    With sums s_i over n_i targets and the mean L = sum s_i / sum n_i, use the standard error of a ratio estimator:

        SE = sqrt(S / (S - 1) * sum (s_i - L n_i)^2) / sum n_i

    Sequences are assumed to be independent. Those of one long document are not, so it is more likely too small.
    Source: Cochran 1977, Sampling Techniques, 3rd edition, equation 6.13.
    """
    sequences = len(nats_S)
    if sequences < 2:
        return None
    residuals_S = nats_S - nats_S.sum() / targets_S.sum() * targets_S
    return float(np.sqrt(sequences / (sequences - 1) * np.sum(residuals_S**2)) / targets_S.sum())


def _nats(programs: Programs, params: decoder.Params, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss sum and target count of each sequence. Each sum is float32; the returned arrays are float64."""
    plan = programs.plan
    batches = validation_batches(dataset, plan.model.context_tokens, plan.validation_batch_seqs)
    scored = [(programs.score(params, tokens, weights), weights.sum(1)) for tokens, weights in batches]
    nats_S = np.concatenate([np.asarray(nats, float).ravel() for nats, _ in scored])
    targets_S = np.concatenate([targets for _, targets in scored]).astype(float)
    has_targets = targets_S > 0
    return nats_S[has_targets], targets_S[has_targets]
