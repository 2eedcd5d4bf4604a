"""The loss on the frozen validation set: every token once, weighted by token, the same for every batch size."""

from dataclasses import dataclass

from smallbatch.data.shards import Dataset
from smallbatch.data.stream import validation_batches
from smallbatch.model import gpt
from smallbatch.training.programs import Programs
from smallbatch.training.steps import TrainState
from smallbatch.units import bits_per_byte


@dataclass(frozen=True)
class Score:
    """The result of a validation pass."""

    loss_nats: float  # mean per token
    bits_per_byte: float | None  # None where the bytes behind the tokens are unknown, or the tokens lost some
    average_loss_nats: float | None = None  # of the average of the weights, if one is kept


def validate(programs: Programs, state: TrainState, dataset: Dataset) -> Score:
    """Score the validation split, with the average of the weights too where one is kept."""
    nats = _nats(programs, programs.evaluation_params(state), dataset)
    average = programs.averaged_params(state)
    targets = len(dataset.validation) - 1
    bytes_ = None if dataset.meta.text_lost_frac else dataset.meta.validation.bytes
    return Score(
        loss_nats=nats / targets,
        bits_per_byte=None if bytes_ is None else bits_per_byte(nats, bytes_),
        average_loss_nats=None if average is None else _nats(programs, average, dataset) / targets,
    )


def _nats(programs: Programs, params: gpt.Params, dataset: Dataset) -> float:
    """Return the summed loss over the split. Sums within a batch are float32, between batches float64."""
    plan = programs.plan
    batches = validation_batches(dataset, plan.model.context_tokens, plan.validation_batch_seqs)
    sums = [programs.score(params, tokens, weights) for tokens, weights in batches]
    return sum(float(x) for x in sums)
