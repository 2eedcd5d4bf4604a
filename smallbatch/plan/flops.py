"""Parameters and training FLOPs of a model, as defined throughout this project.

FLOPs per token = 6 x (parameters in matrix products) + 12 x L x N x H x T, as in PaLM (Chowdhery et al. 2022, arXiv
2204.02311, appendix B): 2 for the forward and 4 for the backward pass, attention counted over the full T x T scores.
The output matrix counts; the embedding lookup does not. Recomputation, the optimizer and the savings of a causal mask
are excluded, so the count depends only on the model and the tokens, not on batch size or implementation.
"""

from smallbatch.specs import ModelSpec


def non_embedding_params(model: ModelSpec) -> int:
    """Return the parameters of the blocks: 4 D^2 + 2 D F per layer."""
    attention = 4 * model.width * model.heads * model.head_width
    return model.layers * (attention + 2 * model.width * model.ffn_width)


def active_params(model: ModelSpec) -> int:
    """Return the parameters in matrix products (blocks and output), the model size in Marek et al. 2025."""
    return non_embedding_params(model) + model.vocab_size * model.width


def total_params(model: ModelSpec) -> int:
    """Return all parameters: blocks, embedding and output."""
    return active_params(model) + model.vocab_size * model.width


def lora_params(model: ModelSpec, rank: int) -> int:
    """Return the parameters of low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on every matrix of the blocks."""
    width, heads = model.width, model.heads * model.head_width
    return model.layers * rank * (4 * (width + heads) + 2 * (width + model.ffn_width))


def train_flops_per_token(model: ModelSpec) -> int:
    """Return the floating-point operations of a forward and a backward pass, per token."""
    attention = 12 * model.layers * model.heads * model.head_width * model.context_tokens
    return 6 * active_params(model) + attention
