"""The table of config keys: name, default, type, meaning and allowed values, one row per key.

`config.base()`, `--help`, the checks of single values and docs/configs.md are generated from `KEYS`.
`python -m smallbatch.config` prints docs/configs.md.
"""

import difflib
import math

from smallbatch.config.batch_schedule import LR_RULES, MAX_BATCH_SIZE
from smallbatch.config.key_types import Interval, Key
from smallbatch.errors import UserError
from smallbatch.optim import OPTIMIZERS
from smallbatch.optim.schedules import SCHEDULES
from smallbatch.specs import LARGEST_VOCAB, SOURCES

POSITIVE = Interval(0, math.inf, "()")
NONNEGATIVE = Interval(0, math.inf, "[)")
COUNT = Interval(1, 2**53)  # float64 is exact up to 2^53
BATCH = Interval(1, MAX_BATCH_SIZE)
DEVICES = Interval(1, 2**20)
VOCABULARY = Interval(2, LARGEST_VOCAB)
FRACTION = Interval(0, 1)
SHARE = Interval(0, 1, "(]")
DECAY = Interval(0, 1, "[)")
UINT32 = Interval(0, 2**32, "[)")
DTYPES = ("float32", "bfloat16")
VALIDATION = ("text:GLOB", "tokens:GLOB", "split:TFDS_SPLIT")
TRANSFER_RULES = ("half_life", "fixed", "sqrt", "linear")

# Meanings that are too long for a row.
PRECISION = "precision of float32 matrix products; `default` means TF32 on GPUs and bfloat16 on TPUs"
REMAT = "what the backward pass recomputes: nothing, all but matrix products (dots), or whole blocks (full)"
SECOND_AVERAGE = "the average of squared gradients (lion: of gradients)"
MUON_MATRICES = "attention matrices orthogonalized by muon: one for all heads (whole) or one per head (heads)"
INTERPOLATION = "schedule-free optimizers: weight of the average in the point at which gradients are computed"


KEYS = (
    Key("data.source", "pystdlib", str, "corpus", tuple(kind.form for kind in SOURCES.values())),
    Key("data.tokenizer", "bytes", str, "tokenizer", ("bytes", "bpe:VOCAB_SIZE", "file:PATH")),
    Key("data.split", "train", str, "TFDS split to train on"),
    Key("data.text_key", "text", str, "field that holds the text in TFDS examples, .jsonl and .parquet files"),
    Key("data.document_separator", None, str, "separator of documents in .txt files; unset: one document per file"),
    Key("data.eod_token", None, str, "end-of-document token of a tokenizer file; unset: one of the usual names"),
    Key("data.tokens_dtype", "uint16", str, "type of the ids in token files", ("uint16", "uint32")),
    Key("data.tokens_vocab_size", None, int, "vocabulary size of token files; required for tokens:GLOB", VOCABULARY),
    Key("data.tokens_eod_id", None, int, "id that ends a document; unset: validate on the end of the file", UINT32),
    Key("data.validation_source", None, str, "separate validation set; unset: a part of data.source", VALIDATION),
    Key("data.validation_frac", 0.05, float, "fraction of documents used for validation", Interval(0, 1, "()")),
    Key("data.validation_max_bytes", 524_288, int, "maximum size of the validation set, in bytes", COUNT),
    Key("data.tfds_data_dir", None, str, "directory of TFDS datasets; unset: the default of TFDS"),
    Key("data.cache_dir", "~/.cache/smallbatch", str, "directory where token shards are written and reused"),
    Key("data.shuffle_seed", 0, int, "seed of the order of the training sequences", UINT32),
    Key("model.width", 128, int, "D, width of the residual stream", Interval(1, 2**17)),
    Key("model.layers", 4, int, "L, number of transformer blocks", Interval(1, 1024)),
    Key("model.head_width", 32, int, "H, width of a head; there are D / H heads", Interval(1, 2**16)),
    Key("model.ffn_width", None, int, "F, width of the MLP; unset: 4 x width", Interval(1, 2**20)),
    Key("model.context_tokens", 256, int, "T, tokens per sequence", Interval(1, 2**22)),
    Key("model.rope_base", 10_000.0, float, "base of the rotary position frequencies", Interval(1, math.inf, "[)")),
    Key("model.param_dtype", "float32", str, "type of the parameters", DTYPES),
    Key("model.compute_dtype", "float32", str, "type of activations; softmax and loss are always float32", DTYPES),
    Key("model.matmul_precision", "highest", str, PRECISION, ("highest", "high", "default")),
    Key("model.remat", "none", str, REMAT, ("none", "dots", "full")),
    Key("model.attention", "auto", str, "attention kernel", ("auto", "xla", "cudnn", "splash")),
    Key("model.max_logits", 2**26, int, "logits per device above which the loss is computed in slices", COUNT),
    Key("optimizer.name", "adam", str, "optimizer", tuple(OPTIMIZERS)),
    Key("optimizer.peak_lr", None, float, "learning rate after the warm-up; unset: the optimizer's default", POSITIVE),
    Key("optimizer.schedule", "cosine", str, "learning-rate schedule after the warm-up", tuple(SCHEDULES)),
    Key("optimizer.warmup_frac", None, float, "warm-up as a fraction of the budget; or set warmup_tokens", FRACTION),
    Key("optimizer.warmup_tokens", None, int, "warm-up in tokens; or set warmup_frac", Interval(0, 2**53)),
    Key("optimizer.decay_frac", None, float, "final fraction of the budget in which a wsd schedule decays", SHARE),
    Key("optimizer.final_lr_frac", 0.0, float, "final learning rate, as a fraction of the peak", FRACTION),
    Key("optimizer.b1", None, float, "decay per step of the average of gradients; or set t1_tokens", DECAY),
    Key("optimizer.t1_tokens", None, float, "half-life in tokens of the average of gradients; or set b1", POSITIVE),
    Key("optimizer.b2", None, float, f"decay per step of {SECOND_AVERAGE}; or set t2_tokens", DECAY),
    Key("optimizer.t2_tokens", None, float, f"half-life in tokens of {SECOND_AVERAGE}; or set b2", POSITIVE),
    Key("optimizer.b2_min", None, float, "lower limit of the decay per step computed from t2_tokens", DECAY),
    Key("optimizer.b2_max", None, float, "upper limit of the decay per step computed from t2_tokens", DECAY),
    Key("optimizer.eps", 1e-8, float, "constant added to the denominator of Adam's update", POSITIVE),
    Key("optimizer.nesterov", False, bool, "use Nesterov momentum"),
    Key("optimizer.muon_matrices", "whole", str, MUON_MATRICES, ("whole", "heads")),
    Key("optimizer.embed_lr", None, float, "muon: Adam's learning rate for embeddings and output", POSITIVE),
    Key("optimizer.decay_exponent", 0.8, float, "c in 1 - b2 = t^-c at update t of adafactor_power", POSITIVE),
    Key("optimizer.interpolation", 0.9, float, INTERPOLATION, SHARE),
    Key("optimizer.weight_decay", 0.0, float, "decoupled weight decay, multiplied by the learning rate", NONNEGATIVE),
    Key("optimizer.clip_norm", None, float, "maximum global norm of the gradient; unset: no clipping", POSITIVE),
    Key("optimizer.rounding", "nearest", str, "rounding of bfloat16 parameters", ("nearest", "stochastic")),
    Key("optimizer.weight_average_b", None, float, "decay per step of the weight average", DECAY),
    Key("optimizer.weight_average_tokens", None, float, "half-life in tokens of the weight average", POSITIVE),
    Key("optimizer.transfer_rule", None, str, "rule that converts tuned values to train.batch_size", TRANSFER_RULES),
    Key("optimizer.tuned_at_batch_size", None, int, "batch size at which the values were tuned", BATCH),
    Key("optimizer.lr_exponent", None, float, "half_life, fixed: multiply the rate by ratio^lr_exponent", FRACTION),
    Key("optimizer.transfer_keeps_tau", False, bool, "scale weight_decay to keep 1 / (lr wd) constant in tokens"),
    Key("train.batch_size", 16, int, "sequences per optimizer update, over all devices", BATCH),
    Key("train.microbatch_size", None, int, "sequences per forward pass; unset: chosen automatically", BATCH),
    Key("train.batch_size_schedule", None, str, "TOKENS:SIZE,...: batch size after a number of training tokens"),
    Key("train.batch_size_lr_rule", None, str, "scaling of the learning rate with the batch size", tuple(LR_RULES)),
    Key("train.budget_tokens", 2**21, int, "training tokens, rounded up to whole updates", COUNT),
    Key("train.seed", 0, int, "seed of the initial weights", UINT32),
    Key("train.steps_per_dispatch", None, int, "updates per compiled call; unset: from FLOPs", Interval(1, 2**16)),
    Key("train.log_every_tokens", 2**15, int, "training tokens between two records of the loss", COUNT),
    Key("train.validate_every_tokens", None, int, "tokens between validations; unset: only at the end", COUNT),
    Key("train.diagnostics", False, bool, "record norms and cosines of gradients and updates, and the noise scale"),
    Key("train.checkpoint_every_secs", 60.0, float, "seconds between two checkpoints", NONNEGATIVE),
    Key("train.diverged_above_start_nats", 3.0, float, "stop if the loss exceeds the initial loss by this", POSITIVE),
    Key("train.sample_tokens", 200, int, "tokens of text sampled at the end; 0: none", Interval(0, 2**22)),
    Key("train.sample_prompt", "def ", str, "prompt of the sample"),
    Key("mesh.data", None, int, "devices that split the batch; unset: the most that divide the micro-batch", DEVICES),
    Key("mesh.fsdp", 1, int, "devices that split the batch and the parameters", DEVICES),
    Key("mesh.tensor", None, int, "devices that split heads, MLP and vocabulary; unset: idle CPU cores", DEVICES),
    Key("mesh.sequence", 1, int, "devices that split the positions of a sequence", DEVICES),
    Key("mesh.cpu_devices", None, int, "devices per CPU; unset: one per core, or 1 for large models", Interval(1, 256)),
    Key("records.tensorboard", False, bool, "write TensorBoard files; needs the extra tensorboard"),
    Key("records.wandb", "off", str, "log to Weights & Biases; needs the extra wandb", ("off", "offline", "online")),
    Key("records.wandb_project", "smallbatch", str, "project on Weights & Biases"),
)

RENAMED: dict[str, str] = {}  # {old key: new key}, for the error of an old config
KEY_BY_NAME = {key.name: key for key in KEYS}


def find(name: str) -> Key:
    """Return a config key by its name. Raises UserError if there is none."""
    if name not in KEY_BY_NAME:
        raise UserError(unknown_key(name))
    return KEY_BY_NAME[name]


def sections() -> dict[str, list[Key]]:
    """Return {section: its keys}."""
    found: dict[str, list[Key]] = {}
    for key in KEYS:
        found.setdefault(key.name.partition(".")[0], []).append(key)
    return found


# Names of keys in other trainers.
ALIASES = {
    **dict.fromkeys(("lr", "learning_rate", "max_lr"), "optimizer.peak_lr"),
    **{"beta1": "optimizer.b1", "beta2": "optimizer.b2", "betas": "optimizer.b1", "wd": "optimizer.weight_decay"},
    **dict.fromkeys(("epochs", "steps", "max_steps", "num_steps", "max_tokens"), "train.budget_tokens"),
    **{"grad_clip": "optimizer.clip_norm", "block_size": "model.context_tokens", "seq_len": "model.context_tokens"},
    **{"gradient_accumulation_steps": "train.microbatch_size", "dim": "model.width", "depth": "model.layers"},
}


def nearest_key(name: str) -> str | None:
    """Return the key that a mistyped name probably meant, even if its section is wrong or missing."""
    if name in RENAMED:
        return RENAMED[name]
    by_last = {key.rpartition(".")[2]: key for key in KEY_BY_NAME}
    last = name.rpartition(".")[2]
    if last in ALIASES:
        return ALIASES[last]
    near = difflib.get_close_matches(name, KEY_BY_NAME, n=1, cutoff=0.75)
    near_last = difflib.get_close_matches(last, by_last, n=1)
    return by_last.get(last) or next(iter(near or [by_last[key] for key in near_last]), None)


def unknown_key(name: str) -> str:
    """Return the error for a key that does not exist: its new name, the nearest key, or the keys that exist."""
    if name in RENAMED:
        return f"{name} was renamed; use {RENAMED[name]}"
    section = name.partition(".")[0]
    if name not in sections() and (near := nearest_key(name)):
        return f"there is no key {name}; did you mean {near}?"
    known = [key.name for key in sections().get(section, [])] or sections()
    return f"there is no key {name}; choose one of {', '.join(known)}"


def markdown() -> str:
    """Return docs/configs.md: a table per section."""
    lines = [
        "# Config keys",
        "",
        "Every key of a config, generated by `python -m smallbatch.config`. Set a key in a config file "
        "(`c.train.batch_size = 4`) or on the command line (`--config.train.batch_size=4`). "
        "`python -m smallbatch.train --help SECTION` prints the keys of a section.",
    ]
    for section, keys in sections().items():
        lines += ["", f"## {section}", "", "| key | meaning | default | allowed |", "|---|---|---|---|"]
        for key in keys:
            allowed = key.expected.removesuffix(", or None")
            lines.append(f"| `{key.name}` | {key.meaning} | `{key.default_text()}` | {allowed} |")
    return "\n".join(lines) + "\n"
