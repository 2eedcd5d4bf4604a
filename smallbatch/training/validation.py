"""The loss on the validation set: the mean over all tokens, each counted once, at every batch size."""

from dataclasses import dataclass

import numpy as np

from smallbatch.data.dataset import Dataset
from smallbatch.data.stream import validation_batches
from smallbatch.model.decoder import Params
from smallbatch.optim import HyperParams
from smallbatch.plan.plan import Plan
from smallbatch.training.program import TrainProgram
from smallbatch.training.train_step import TrainState
from smallbatch.units import bits_per_byte


@dataclass(frozen=True)
class Score:
    """The result of a validation pass."""

    loss_nats: float  # mean per token
    bits_per_byte: float | None  # None if the text's size in bytes is unknown, or the tokenizer is lossy
    average_loss_nats: float | None = None  # of the weight average, if the run has one
    loss_se_nats: float | None = None  # standard error of loss_nats over the sequences; None for one sequence


def validate(program: TrainProgram, hyperparams: HyperParams, state: TrainState, plan: Plan, dataset: Dataset) -> Score:
    """Score the validation split with the state of one run, and with its weight average if there is one."""
    nats_S, targets_S = _nats(program, program.evaluation_params(hyperparams, state), plan, dataset)
    nats, targets = float(nats_S.sum()), len(dataset.validation) - 1
    average, average_loss_nats = program.averaged_params(hyperparams, state), None
    if average is not None:
        average_loss_nats = float(_nats(program, average, plan, dataset)[0].sum()) / targets
    text_bytes = None if dataset.meta.text_lost_frac else dataset.meta.validation.bytes
    return Score(
        loss_nats=nats / targets,
        bits_per_byte=None if text_bytes is None else bits_per_byte(nats, text_bytes),
        average_loss_nats=average_loss_nats,
        loss_se_nats=standard_error(nats_S, targets_S),
    )


def standard_error(nats_S: np.ndarray, targets_S: np.ndarray) -> float | None:
    """Return the standard error of the mean loss per token over S sequences, float64; None for one sequence.

    With sums s_i over n_i targets and the mean L = sum s_i / sum n_i, use the standard error of a ratio estimator:

        SE = sqrt(S / (S - 1) * sum (s_i - L n_i)^2) / sum n_i

    Sequences are assumed to be independent. Sequences of one long document are not, so the result is a lower estimate.
    Source: Cochran 1977, Sampling Techniques, 3rd edition, equation 6.13.
    """
    sequences = len(nats_S)
    if sequences < 2:
        return None
    residuals_S = nats_S - nats_S.sum() / targets_S.sum() * targets_S
    return float(np.sqrt(sequences / (sequences - 1) * np.sum(residuals_S**2)) / targets_S.sum())


def _nats(program: TrainProgram, params: Params, plan: Plan, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss sum and target count of each sequence. Each sum is float32; the returned arrays are float64."""
    batches = validation_batches(dataset, plan.model.context_tokens, plan.validation_batch_seqs)
    scored = [(program.score(params, tokens, weights), weights.sum(1)) for tokens, weights in batches]
    nats_S = np.concatenate([np.asarray(nats, float).ravel() for nats, _ in scored])
    targets_S = np.concatenate([targets for _, targets in scored]).astype(float)
    has_targets = targets_S > 0
    return nats_S[has_targets], targets_S[has_targets]
