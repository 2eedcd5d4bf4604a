"""Every key that can be set, with its default and unit; what makes a config valid; its fingerprint.

A config file is a delta on `base()`. Optional keys are typed placeholders: None until set. Nothing here starts JAX.
"""

from ml_collections import config_dict
from ml_collections.config_dict import placeholder


def base() -> config_dict.ConfigDict:
    """Return the config of the default run, unlocked: the paper's decoder, small, on Python's standard library."""
    c = config_dict.ConfigDict()

    c.data = data = config_dict.ConfigDict()
    data.source = "pystdlib"  # pystdlib | tfds:NAME | text:GLOB | tokens:PATH
    data.tokenizer = "bytes"  # bytes | bpe:VOCABULARY | file:PATH of a tokenizer.json
    data.split = "train"  # TFDS split to read
    data.text_key = "text"  # field that holds the text in TFDS examples, .jsonl and .parquet
    data.document_separator = placeholder(str)  # cuts .txt files into documents; unset: a file is a document
    data.eod_token = placeholder(str)  # end-of-document token of a tokenizer file; unset: the usual names are tried
    data.tokens_dtype = "uint16"  # of tokens:PATH; uint16 | uint32
    data.tokens_vocab_size = placeholder(int)  # of tokens:PATH; needed there
    data.tokens_eod_id = placeholder(int)  # of tokens:PATH; unset: the tail of the file is held out
    data.validation_frac = 0.05  # share of the documents held out, chosen by a hash of their text
    data.validation_max_bytes = 524_288  # the validation set stops growing here
    data.tfds_data_dir = placeholder(str)  # where TFDS looks for and puts datasets; unset: TFDS's own default
    data.cache_dir = "~/.cache/smallbatch"  # token shards are written here and reused
    data.shuffle_seed = 0  # order of the training sequences

    c.model = model = config_dict.ConfigDict()
    model.width = 128  # D
    model.layers = 4  # L
    model.head_width = 32  # H; the number of heads is width / head_width
    model.ffn_width = placeholder(int)  # F; unset: 4 x width
    model.context_tokens = 256  # T
    model.rope_base = 10_000.0
    model.param_dtype = "float32"  # float32 | bfloat16
    model.compute_dtype = "float32"  # float32 | bfloat16; softmax and loss are float32 always
    model.remat = "none"  # none | dots (keep matrix products) | full (keep block inputs)
    model.attention = "auto"  # auto | xla | cudnn | splash
    model.max_logits = 2**26  # tokens x vocabulary kept at once in the loss; more is done in slices of the context

    c.optimizer = optimizer = config_dict.ConfigDict()
    optimizer.name = "adam"  # adam | sgd
    optimizer.peak_lr = 0.003
    optimizer.schedule = "cosine"  # cosine | linear | constant, after the warm-up
    optimizer.warmup_frac = placeholder(float)  # warm-up as a share of the budget ...
    optimizer.warmup_tokens = placeholder(int)  # ... or in tokens: exactly one of the two
    optimizer.final_lr_frac = 0.0  # learning rate at the end, as a share of the peak
    optimizer.b1 = placeholder(float)  # Adam's first moment: decay per step ...
    optimizer.t1_tokens = placeholder(float)  # ... or half-life in tokens: exactly one of the two
    optimizer.b2 = placeholder(float)  # Adam's second moment: decay per step ...
    optimizer.t2_tokens = placeholder(float)  # ... or half-life in tokens: exactly one of the two
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.0  # decoupled, times the learning rate

    c.train = train = config_dict.ConfigDict()
    train.batch_size = 16  # sequences per optimizer update, over all devices
    train.microbatch_size = placeholder(int)  # sequences per forward pass; unset: batch_size, no accumulation
    train.budget_tokens = 2**21  # a multiple of batch_size x context_tokens
    train.seed = 0  # initial weights
    train.steps_per_dispatch = placeholder(int)  # updates per compiled call; unset: as many as 32,768 tokens hold, <= 64
    train.log_every_tokens = 2**15
    train.validate_every_tokens = placeholder(int)  # unset: at the end only
    train.checkpoint_every_secs = 60.0
    train.diverged_above_start_nats = 3.0  # mean loss of a log interval this far above the start ends the run
    train.sample_tokens = 200  # length of the text sampled at the end; 0 for none
    train.sample_prompt = "def "

    c.mesh = mesh = config_dict.ConfigDict()
    mesh.data = placeholder(int)  # devices the batch is split over; unset: as many as divide the micro-batch
    mesh.fsdp = 1  # devices that split the batch and share the parameters
    mesh.tensor = 1  # devices that share heads, MLP and vocabulary
    mesh.cpu_devices = placeholder(int)  # CPU devices to make when there is no accelerator; unset: one a core

    c.records = records = config_dict.ConfigDict()
    records.tensorboard = False  # needs the extra `tensorboard`
    records.wandb = "off"  # off | offline | online; needs the extra `wandb`
    records.wandb_project = "smallbatch"
    return c
