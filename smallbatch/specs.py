"""Frozen, hashable specifications of the data, the model, the optimizer, the devices and the compiled program."""

from dataclasses import dataclass

SMALLEST_BPE_VOCAB = 258  # 256 bytes, the end-of-document token and one merge
LARGEST_VOCAB = 2**24  # far above any tokenizer in use, and within int32


def is_bpe_vocab(digits: str) -> bool:
    """Return whether the N of bpe:N is a valid vocabulary size."""
    few_digits = digits.isascii() and digits.isdigit() and len(digits) <= len(str(LARGEST_VOCAB))
    return few_digits and SMALLEST_BPE_VOCAB <= int(digits) <= LARGEST_VOCAB


@dataclass(frozen=True)
class SourceKind:
    """A kind of `data.source`. The module smallbatch/data/source_KIND.py reads it."""

    form: str  # spelling in a config: KIND or KIND:REST
    reads: tuple[str, ...]  # keys of the data section that only some kinds read
    validation_forms: tuple[str, ...] = ("text:GLOB",)  # allowed values of data.validation_source
    holds_tokens: bool = False  # token ids instead of text


SOURCES = {
    "pystdlib": SourceKind("pystdlib", ("tokenizer",)),
    "tfds": SourceKind(
        "tfds:NAME", ("tokenizer", "split", "text_key", "tfds_data_dir"), ("text:GLOB", "split:TFDS_SPLIT")
    ),
    "text": SourceKind("text:GLOB", ("tokenizer", "text_key", "document_separator")),
    "tokens": SourceKind(
        "tokens:GLOB", ("tokens_dtype", "tokens_vocab_size", "tokens_eod_id"), ("tokens:GLOB",), holds_tokens=True
    ),
}


@dataclass(frozen=True)
class DataSpec:
    """A corpus, its tokenizer and its validation set."""

    source: str  # one of the forms in SOURCES
    tokenizer: str  # bytes | bpe:N | file:PATH
    split: str  # TFDS split that is read
    text_key: str  # field with the text in TFDS examples, .jsonl and .parquet
    document_separator: str | None  # splits .txt files into documents; None: one file is one document
    eod_token: str | None  # end-of-document token of a tokenizer file; None: the first common name that it has
    tokens_dtype: str  # uint16 | uint32, for tokens:GLOB
    tokens_vocab_size: int | None  # required for tokens:GLOB
    tokens_eod_id: int | None  # splits tokens:GLOB into documents; None: the end of the tokens is the validation split
    validation_source: str | None  # text:GLOB | tokens:GLOB | split:NAME; None: part of `source`
    validation_frac: float  # fraction of the documents that a hash of their text assigns to the validation split
    validation_max_bytes: int  # largest size of the validation set; later documents of that split are unused
    tfds_data_dir: str | None
    cache_dir: str


@dataclass(frozen=True)
class ModelSpec:
    """The decoder of Marek et al. 2025: pre-norm, QK-norm, RoPE, GELU MLP, no biases, untied embeddings."""

    width: int  # D
    layers: int  # L
    head_width: int  # H; N = D / H heads
    ffn_width: int  # F
    context_tokens: int  # T
    vocab_size: int  # V
    rope_base: float
    param_dtype: str  # float32 | bfloat16
    compute_dtype: str  # float32 | bfloat16
    matmul_precision: str  # precision of float32 products: highest | high | default
    remat: str  # none | dots | full
    attention: str  # xla | cudnn | splash
    max_logits: int  # logits per device above which the loss is computed in slices of the context

    @property
    def heads(self) -> int:
        return self.width // self.head_width


@dataclass(frozen=True)
class OptimizerSpec:
    """The compile-time part of an optimizer. Its traced numbers are in `HyperParams`."""

    name: str  # a key of optim.OPTIMIZERS
    schedule: str  # a key of optim.schedules.SCHEDULES
    nesterov: bool = False
    muon_heads: bool = False  # Muon: one q, k, v and output matrix per head; False: one for all heads
    clip: bool = False  # clip gradients by global norm
    stochastic_rounding: bool = False  # round bfloat16 parameters stochastically
    weight_average: bool = False
    diagnostics: str = "off"  # off | parts | successive: gradients from which the noise scale is estimated


@dataclass(frozen=True)
class DeviceSpec:
    """The properties of JAX's devices that a plan depends on."""

    platform: str  # cpu | gpu | tpu
    count: int
    compute_capability: str | None = None  # such as 9.0 on NVIDIA GPUs and gfx942 on AMD GPUs
    lanes: bool = False  # whether many runs share a program
    kind: str | None = None  # JAX's device_kind, such as TPU v3; None: unknown


@dataclass(frozen=True)
class MeshSpec:
    """Devices along each mesh axis; their product is the number of devices used."""

    data: int
    fsdp: int
    tensor: int
    sequence: int = 1

    def __str__(self) -> str:
        return f"data {self.data} x fsdp {self.fsdp} x tensor {self.tensor} x sequence {self.sequence}"

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor * self.sequence

    @property
    def data_groups(self) -> int:
        """Number of device groups, each of which computes the gradient of its share of a batch before averaging."""
        # XLA's partitioner aborts if it splits over two axes inside a `shard_map` over a third (jaxlib 0.10.2).
        return self.data if sum(size > 1 for size in (self.fsdp, self.tensor, self.sequence)) < 2 else 1


@dataclass(frozen=True)
class ProgramSpec:
    """Everything that a compiled program depends on. Runs with equal specs share programs."""

    model: ModelSpec
    optimizer: OptimizerSpec
    mesh: MeshSpec
    platform: str
    steps_per_dispatch: int  # K
    accumulation_steps: int  # A
    microbatch_size: int  # M
    validation_microbatch_seqs: int
    topology: str | None = None  # TPU slice to compile for if no TPU is attached; None: JAX's devices
