"""The loss on the frozen validation set: every token once, weighted by token, the same for every batch size."""

from dataclasses import dataclass

from smallbatch.data.shards import Dataset
from smallbatch.data.stream import validation_batches
from smallbatch.training.programs import Programs
from smallbatch.training.steps import TrainState
from smallbatch.units import bits_per_byte


@dataclass(frozen=True)
class Score:
    """The result of a validation pass."""

    loss_nats: float  # mean per token
    bits_per_byte: float | None  # None where the bytes behind the tokens are unknown


def validate(programs: Programs, state: TrainState, dataset: Dataset) -> Score:
    """Score the validation split. Sums within a batch are float32, between batches float64."""
    plan = programs.plan
    batches = validation_batches(dataset, plan.model.context_tokens, plan.validation_batch_seqs)
    sums = [programs.score(state, tokens, weights) for tokens, weights in batches]
    nats = sum(float(x) for x in sums)
    bytes_ = dataset.meta.validation.bytes
    return Score(
        loss_nats=nats / (len(dataset.validation) - 1),
        bits_per_byte=None if bytes_ is None else bits_per_byte(nats, bytes_),
    )
