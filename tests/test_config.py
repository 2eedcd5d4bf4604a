"""Configs: every rule is reported with a fix, the fingerprint follows the numbers, and the config files are valid."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from smallbatch import config
from smallbatch.config import checks, fingerprints, keys
from smallbatch.config import files as config_files
from smallbatch.config.key_types import Interval
from smallbatch.data import tokenizers
from smallbatch.errors import UserError
from smallbatch.optim import OPTIMIZERS

CONFIGS = Path(__file__).parents[1] / "configs"


def problems(overrides=""):
    """Return the problems of the quickstart after overrides, such as "train.seed=-1 optimizer.b1=None"."""
    flat = config.flatten(config.quickstart().to_dict()) | {"train.batch_size": 16, "train.budget_tokens": 2**21}
    for override in overrides.split():
        name, _, value = override.partition("=")
        flat[name] = eval(value, {"nan": math.nan, "inf": math.inf})
    return checks.problems(flat)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("train", "batch_sise", 1, "there is no key train.batch_sise; did you mean train.batch_size?"),
        ("mesh", "peak_lr", 1.0, "there is no key mesh.peak_lr; did you mean optimizer.peak_lr?"),
        ("train", "batch_size", "1", "train.batch_size is '1', but must be an integer in [1, 2^24]"),
        ("mesh", "data", 1.5, "mesh.data is 1.5, but must be an integer in [1, 2^20], or None"),
    ],
)
def test_an_invalid_assignment_in_python_is_a_one_line_error(section, key, value, words):
    c = config.quickstart()
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        setattr(c[section], key, value)
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        c.update_from_flattened_dict({f"{section}.{key}": value})
    assert copy.deepcopy(c) == c == config.quickstart() and "FieldReference" not in repr(c)


def test_base_is_locked_and_lacks_only_the_warm_up_and_the_decays():
    c = config.base()
    with pytest.raises(AttributeError, match="batch_sise"):
        c.train.batch_sise = 1
    with pytest.raises(AttributeError):
        c.trian = 1
    with pytest.raises(UserError) as raised:
        config.validate(c)
    assert str(raised.value).split("\n  ")[1:] == [
        "neither optimizer.warmup_frac nor optimizer.warmup_tokens is set; set exactly one",
        "neither optimizer.b1 nor optimizer.t1_tokens is set; set exactly one",
        "neither optimizer.b2 nor optimizer.t2_tokens is set; set exactly one",
    ]


def test_the_quickstart_is_valid_and_a_new_copy_each_time():
    assert problems() == []
    config.quickstart().train.seed = 5
    assert config.quickstart().train.seed == 0


SGD = "optimizer.name='sgd' optimizer.peak_lr=0.3 optimizer.b1=None optimizer.t2_tokens=None"
WARMUP_TOKENS = "optimizer.warmup_frac=None optimizer.warmup_tokens"
VALID = [
    "optimizer.b1=0.0",
    "optimizer.b2=0.95 optimizer.t2_tokens=None",
    "optimizer.warmup_frac=None optimizer.warmup_tokens=0",
    "optimizer.warmup_frac=1.0",
    SGD,
    "optimizer.schedule='linear' optimizer.final_lr_frac=0.1",
    "train.microbatch_size=4",
    "train.log_every_tokens=1",
    "train.checkpoint_every_secs=0.0",
    "train.sample_tokens=0 train.sample_prompt=''",
    "data.tokenizer='bpe:258'",
    "data.tokenizer='file:t.json' data.eod_token='</s>'",
    "data.source='tfds:c4/en' data.split='validation' data.text_key='body'",
    "data.source='text:**/*.txt' data.document_separator='\\n\\n'",
    "data.source='tokens:t.bin' data.tokens_vocab_size=65536 data.tokens_eod_id=65535",
    "data.source='tokens:t.bin' data.tokens_vocab_size=70000 data.tokens_dtype='uint32'",
    "data.source='tokens:t.bin' data.tokens_vocab_size=9 data.tokenizer='file:t.json'",
    "data.source='tokens:t*.bin' data.tokens_vocab_size=9 data.validation_source='tokens:val.bin'",
    "data.source='tfds:c4/en' data.validation_source='split:validation'",
    "data.validation_source='text:val.jsonl' data.text_key='body'",
    "model.head_width=128",
    "train.budget_tokens=5000",  # rounded up to whole updates
    "optimizer.peak_lr=None",
]


@pytest.mark.parametrize("overrides", VALID)
def test_allowed_values_pass(overrides):
    assert problems(overrides) == []


INVALID = {
    "train.batch_size=True": "train.batch_size is True, but must be an integer in [1, 2^24]",
    "train.batch_size=None": "train.batch_size is None, but must be an integer in [1, 2^24]",
    "train.batch_size=0": "train.batch_size is 0, but must be an integer in [1, 2^24]",
    "optimizer.peak_lr=nan": "optimizer.peak_lr is nan, but must be a number in (0, inf), or None",
    "optimizer.b1=1.0": "optimizer.b1 is 1.0, but must be a number in [0, 1), or None",
    "optimizer.name='adan'": (
        f"optimizer.name is 'adan', but must be one of {', '.join(OPTIMIZERS)}; did you mean adam?"
    ),
    "model.remat='Full'": "model.remat is 'Full', but must be one of none, dots, full; did you mean full?",
    "data.source='pystdlb'": (
        "data.source is 'pystdlb', but must be one of pystdlib, tfds:NAME, text:GLOB, tokens:GLOB; did you mean "
        "pystdlib?"
    ),
    "data.source='tfds:'": "data.source is 'tfds:', but must be one of pystdlib, tfds:NAME, text:GLOB, tokens:GLOB",
    "data.validation_source='txt:v.txt'": (
        "data.validation_source is 'txt:v.txt', but must be one of text:GLOB, tokens:GLOB, split:TFDS_SPLIT, or None;"
        " did you mean text?"
    ),
    "data.validation_source='split:test'": (
        "data.validation_source is 'split:test', but data.source 'pystdlib' needs one of text:GLOB"
    ),
    "data.source='tfds:c4/en' data.validation_source='split:train'": (
        "data.validation_source is 'split:train', which is data.split, the training set; choose another split"
    ),
    "data.validation_source='tokens:v.bin'": (
        "data.validation_source is 'tokens:v.bin', but data.source 'pystdlib' needs one of text:GLOB"
    ),
    "data.validation_source='text:v.txt' data.validation_frac=0.1": (
        "data.validation_frac is 0.1, which has no effect with data.validation_source set; leave it at 0.05"
    ),
    "data.tokenizer='byte'": (
        "data.tokenizer is 'byte', but must be one of bytes, bpe:VOCAB_SIZE, file:PATH; did you mean bytes?"
    ),
    "data.tokenizer='bpe:257'": (
        "data.tokenizer is 'bpe:257', but its vocabulary size must be an integer from 258 to 16,777,216"
    ),
    "data.tokenizer='bpe:1e4'": (
        "data.tokenizer is 'bpe:1e4', but its vocabulary size must be an integer from 258 to 16,777,216"
    ),
    "data.eod_token='</s>'": (
        "data.eod_token is '</s>', which has no effect with data.tokenizer 'bytes'; unset it with "
        "--config.data.eod_token=None"
    ),
    "data.split='test'": "data.split is 'test', which has no effect with data.source 'pystdlib'; leave it at 'train'",
    "data.tokens_vocab_size=9": (
        "data.tokens_vocab_size is 9, which has no effect with data.source 'pystdlib'; unset it with "
        "--config.data.tokens_vocab_size=None"
    ),
    "data.source='tokens:t.bin'": (
        "data.tokens_vocab_size is unset, but data.source tokens:GLOB needs it, e.g. 50257 for GPT-2 tokens"
    ),
    "data.source='tokens:t.bin' data.tokens_vocab_size=70000": (
        "data.tokens_vocab_size is 70000, but uint16 ids allow at most 65536; use uint32 ids"
    ),
    "data.source='tokens:t.bin' data.tokens_vocab_size=9 data.tokens_eod_id=9": (
        "data.tokens_eod_id is 9, but must be below data.tokens_vocab_size, 9"
    ),
    "data.source='tokens:t.bin' data.tokens_dtype='uint32' data.tokens_vocab_size=2**24+1": (
        "data.tokens_vocab_size is 16777217, but must be an integer in [2, 2^24], or None"
    ),
    "data.source='tokens:t.bin' data.tokens_vocab_size=9 data.tokenizer='bpe:300'": (
        "data.tokenizer is 'bpe:300', which has no effect with data.source 'tokens:t.bin'; leave it at 'bytes'"
    ),
    "data.cache_dir=''": "data.cache_dir is empty; set it to a directory",
    "model.head_width=48": "model.head_width is 48, which does not divide model.width, 128",
    "model.head_width=1": "model.head_width is 1, but rotary positions need an even number",
    "optimizer.b2=0.99": (
        "optimizer.b2 is 0.99 and optimizer.t2_tokens is 1000000.0; unset one with --config.optimizer.b2=None or "
        "--config.optimizer.t2_tokens=None"
    ),
    "optimizer.t2_tokens=None": "neither optimizer.b2 nor optimizer.t2_tokens is set; set exactly one",
    "optimizer.warmup_tokens=5": (
        "optimizer.warmup_frac is 0.05 and optimizer.warmup_tokens is 5; unset one with "
        "--config.optimizer.warmup_frac=None or --config.optimizer.warmup_tokens=None"
    ),
    f"{WARMUP_TOKENS}=2**21+1": ("optimizer.warmup_tokens is 2,097,153, above train.budget_tokens, 2,097,152"),
    "optimizer.name='sgd' optimizer.peak_lr=0.3 optimizer.b1=None": (
        "optimizer.t2_tokens is 1000000.0, which has no effect with optimizer.name sgd; unset it with "
        "--config.optimizer.t2_tokens=None"
    ),
    f"{SGD} optimizer.eps=1e-6": (
        "optimizer.eps is 1e-06, which has no effect with optimizer.name sgd; leave it at 1e-08"
    ),
    "optimizer.nesterov=True": (
        "optimizer.nesterov is True, which has no effect with optimizer.name adam; leave it at False"
    ),
    "optimizer.name='momentum' optimizer.peak_lr=0.3 optimizer.b1=None optimizer.t2_tokens=None": (
        "neither optimizer.b1 nor optimizer.t1_tokens is set; set exactly one"
    ),
    "optimizer.b2=0.99 optimizer.t2_tokens=None optimizer.b2_min=0.95": (
        "optimizer.b2_min is 0.95, which has no effect with optimizer.b2 0.99, since it limits the decay from "
        "t2_tokens; unset it with --config.optimizer.b2_min=None"
    ),
    "optimizer.b2_min=0.999 optimizer.b2_max=0.99": "optimizer.b2_min is 0.999, above optimizer.b2_max, 0.99",
    "optimizer.transfer_rule='sqrt'": (
        "optimizer.tuned_at_batch_size is unset, but optimizer.transfer_rule sqrt needs it"
    ),
    "optimizer.transfer_rule='half_life' optimizer.tuned_at_batch_size=8": (
        "optimizer.lr_exponent is unset, but optimizer.transfer_rule half_life needs it: 0 keeps the learning rate, "
        "0.16 to 0.25 was tuned for Adam"
    ),
    "optimizer.transfer_rule='linear' optimizer.tuned_at_batch_size=8 optimizer.lr_exponent=0.5": (
        "optimizer.lr_exponent is 0.5, which has no effect with optimizer.transfer_rule linear; unset it with "
        "--config.optimizer.lr_exponent=None"
    ),
    "optimizer.lr_exponent=0.5": (
        "optimizer.lr_exponent is 0.5, which has no effect with optimizer.transfer_rule unset; unset it with "
        "--config.optimizer.lr_exponent=None"
    ),
    "optimizer.schedule='wsd_sqrt'": (
        "optimizer.decay_frac is unset, but optimizer.schedule wsd_sqrt needs it, e.g. 0.2"
    ),
    "optimizer.schedule='wsd_linear' optimizer.decay_frac=0.96": (
        "the warm-up is 0.05 of the budget and optimizer.decay_frac is 0.96; their sum must be at most 1"
    ),
    f"{WARMUP_TOKENS}=2**20 optimizer.schedule='wsd_linear' optimizer.decay_frac=0.75": (
        "the warm-up is 0.5 of the budget and optimizer.decay_frac is 0.75; their sum must be at most 1"
    ),
    "optimizer.decay_frac=0.2": (
        "optimizer.decay_frac is 0.2, which has no effect with optimizer.schedule cosine; unset it with "
        "--config.optimizer.decay_frac=None"
    ),
    "optimizer.schedule='constant' optimizer.final_lr_frac=0.1": (
        "optimizer.final_lr_frac is 0.1, which has no effect with optimizer.schedule constant; leave it at 0.0"
    ),
    "train.microbatch_size=5": (
        "train.microbatch_size is 5, which does not divide train.batch_size, 16; the next smaller divisor is 4"
    ),
    "train.microbatch_size=32": (
        "train.microbatch_size is 32, which does not divide train.batch_size, 16; the next smaller divisor is 16"
    ),
    "optimizer.name='sgd' optimizer.b1=None optimizer.t2_tokens=None": (
        "optimizer.peak_lr is unset, and sgd has no default (only 0.003 for adam); set --config.optimizer.peak_lr to "
        "a learning rate tuned for sgd"
    ),
    "optimizer.peak_lr=1e39": (
        "optimizer.peak_lr is 1e+39, which is above the largest float32 number, 3.40e+38; choose a number in the "
        "range of float32"
    ),
    "optimizer.eps=1e-40": (
        "optimizer.eps is 1e-40, which is below the smallest float32 number, 1.18e-38, and would become 0; choose a "
        "number in the range of float32"
    ),
    "train.steps_per_dispatch=2**16 train.batch_size=512": (
        "train.steps_per_dispatch is 65,536, or 8,589,934,592 tokens on the devices; at most 1,073,741,824 are "
        "allowed: use 8,192 or less"
    ),
    f"{SGD} optimizer.transfer_rule='sqrt' optimizer.tuned_at_batch_size=8": (
        "optimizer.transfer_rule is sqrt, but optimizer.name is sgd, and the rule holds only for adam, adafactor, "
        "schedule_free_adamw; use linear, fixed or half_life"
    ),
    "optimizer.transfer_keeps_tau=True": (
        "optimizer.transfer_keeps_tau is True, which has no effect with optimizer.transfer_rule unset; leave it at "
        "False"
    ),
    "optimizer.transfer_rule='linear' optimizer.tuned_at_batch_size=8 optimizer.transfer_keeps_tau=True": (
        "optimizer.transfer_keeps_tau is True, which has no effect with optimizer.weight_decay 0; leave it at False"
    ),
    "optimizer.muon_matrices='heads'": (
        "optimizer.muon_matrices is 'heads', which has no effect with optimizer.name adam; leave it at 'whole'"
    ),
}


@pytest.mark.parametrize("overrides", INVALID)
def test_an_invalid_config_is_reported_with_a_fix(overrides):
    assert problems(overrides) == [INVALID[overrides]]


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        ("train.budget_tokens=2**53", "train.budget_tokens: 9,007,199,254,740,992 tokens are 2,199,023,255,552 "),
        ("train.batch_size_schedule='5000:8' train.batch_size_lr_rule='none'", "train.batch_size_schedule: from 0 "),
        ("train.batch_size_schedule='4096:16777217' train.batch_size_lr_rule='none'", "train.batch_size_schedule: '4"),
    ],
)
def test_an_error_in_the_stages_names_its_key(overrides, start):
    (found,) = problems(overrides)
    assert found.startswith(start)


def test_all_problems_are_reported_at_once():
    assert len(problems("train.batch_size='x' model.width=-1 optimizer.b2=0.9 data.source='no' train.seed=-1")) == 5
    with pytest.raises(
        UserError, match=r"^in the config:\n  neither optimizer\.warmup_frac .*\n  neither optimizer\.b1 "
    ):
        config.validate(config.base())


def test_unknown_and_missing_keys_are_problems():
    values = config.quickstart().to_dict()
    values["train"]["batch_sise"] = values["train"].pop("batch_size")
    with pytest.raises(UserError) as raised:
        config.validate(ConfigDict(values))
    assert "there is no key train.batch_sise; did you mean train.batch_size?" in str(raised.value)
    assert "train.batch_size is missing" in str(raised.value)


def test_rules_name_existing_keys():
    named = {*checks.PATHS, *checks.WARMUP_PAIR, *sum(checks.PAIRS.values(), ())}
    assert named | {*fingerprints.WITHOUT_EFFECT_ON_NUMBERS} <= config.KEY_BY_NAME.keys()


@pytest.mark.parametrize("key", keys.KEYS, ids=lambda key: key.name)
def test_every_row_is_complete_and_its_default_is_allowed(key):
    assert key.problem(key.default) is None and type(key.default) in (key.type, type(None))
    assert key.meaning and "|" not in key.meaning + key.expected  # a column of a Markdown table
    if key.type in (int, float):
        assert isinstance(key.allowed, Interval)
        assert key.problem(-(10**400)) and key.problem(10**400) and key.problem(math.nan)


@pytest.mark.parametrize(
    ("interval", "text", "inside", "outside"),
    [
        (Interval(1, 1024), "[1, 1024]", (1, 1024), (0, 1025, math.nan, 10**400)),
        (Interval(0, 2**32, "[)"), "[0, 2^32)", (0, 2**32 - 1), (-1, 2**32)),
        (Interval(0, math.inf, "()"), "(0, inf)", (1e-300, 1e300), (0, -1, math.inf, 10**400)),
        (Interval(0, 0.5, "(]"), "(0, 0.5]", (1e-9, 0.5), (0, 0.6)),
    ],
)
def test_an_interval_contains_its_ends_as_its_brackets_show(interval, text, inside, outside):
    assert str(interval) == text
    assert all(value in interval for value in inside) and not any(value in interval for value in outside)


def test_a_renamed_key_is_reported_with_its_new_name(monkeypatch):
    monkeypatch.setitem(keys.RENAMED, "train.minibatch", "train.batch_size")
    with pytest.raises(UserError, match=r"train\.minibatch was renamed; use train\.batch_size"):
        config.from_sections({"train": {"minibatch": 4}})
    with pytest.raises(UserError, match=r"train\.minibatch was renamed; use train\.batch_size"):
        config.base().train.minibatch = 4


def test_the_page_of_keys_has_a_row_per_key():
    page = keys.markdown()
    assert page.count("\n## ") == len(keys.sections()) and page.count("\n| `") == len(keys.KEYS)
    assert "| `train.batch_size` | sequences per optimizer update, over all devices | `16` | an integer in" in page


@pytest.mark.parametrize("size", ["257", "16777217", "99999999999", "9" * 5000, "٣٠٠"])
def test_config_and_tokenizer_reject_a_bpe_vocabulary_out_of_bounds(size):
    assert "an integer from 258 to 16,777,216" in problems(f"data.tokenizer='bpe:{size}'")[0]
    with pytest.raises(UserError, match="from 258 to 16,777,216"):
        tokenizers.split_tokenizer(f"bpe:{size}")


def test_exactly_the_keys_that_change_a_number_change_the_fingerprint():
    unchanged = []
    for key in keys.KEYS:
        c = config.quickstart()
        section, _, last = key.name.partition(".")
        c[section][last] = {int: 7, float: 0.7, str: "another", bool: c[section][last] is False}[key.type]
        if config.fingerprint(c) == config.fingerprint(config.quickstart()):
            unchanged.append(key.name)
    without_effect = ["data.cache_dir", "data.tfds_data_dir"]
    without_effect += [f"mesh.{axis}" for axis in ("cpu_devices", "data", "fsdp", "sequence", "tensor")]
    without_effect += ["records.tensorboard", "records.wandb", "records.wandb_project"]
    without_effect += ["train.checkpoint_every_secs", "train.sample_prompt", "train.sample_tokens"]
    assert sorted(unchanged) == without_effect


def test_the_fingerprint_depends_on_neither_the_process_nor_the_spelling_of_a_number():
    code = "from smallbatch import config; print(config.fingerprint(config.quickstart()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONFIGS.parent)
    c = config.quickstart()
    c.optimizer.t2_tokens = 1_000_000  # a whole number for a float key
    assert config.fingerprint(c) == done.stdout.strip()
    assert len(config.fingerprint(c)) == 64 and int(config.fingerprint(c), 16)


def test_the_fingerprint_survives_a_run_directory():
    c = config.quickstart()
    reread = ConfigDict(json.loads(json.dumps(c.to_dict())))
    config.validate(reread)
    assert config.fingerprint(reread) == config.fingerprint(c)


def test_differences_contain_both_values():
    a, b = config.quickstart(), config.quickstart()
    assert config.differences(a.to_dict(), b.to_dict()) == []
    b.train.batch_size, b.optimizer.b2, b.data.cache_dir = 8, 0.9, "elsewhere"
    old = b.to_dict()
    old["train"]["gone"] = None
    assert config.differences(a.to_dict(), old) == [
        "optimizer.b2: None | 0.9", "train.batch_size: 4 | 8", "train.gone: (no such key) | None"
    ]  # fmt: skip


def test_importing_config_does_not_import_jax():
    code = "import sys; from smallbatch.config import cli, files; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONFIGS.parent)
    assert done.stdout == "False\n"


ARGUMENTS = {
    "quickstart": [None],
    "quickstart_grid": [None],
    "critical_batch": [None, "85M", "151M", "302M", "604M", "1.2B"],
    "lm30m": [None, "1", "4", "16", "64", "256", "1024", "4096", "adam", "sensitivity"],
    "lm19m": [None, "16", "32", "64", "128", "256", "512", "1024", "arms"],
    "gpt2s": [None, "adam1", "adam1_b2_fixed", "adamw512", "sgd1", "adafactor1", "adafactor_power1", "optimizers"],
    "gpt3xl": [None, "adam1", "adam1_b2_fixed", "adamw512", "sgd1", "adafactor1", "adafactor_power1", "headline"],
}
FILES = [(name, argument) for name, arguments in ARGUMENTS.items() for argument in arguments]


def load(name, argument=None):
    return config_files.load(f"{CONFIGS / name}.py" + (f":{argument}" if argument else ""))


@pytest.mark.parametrize(("name", "argument"), FILES)
def test_every_config_file_is_valid(name, argument):
    config.validate(load(name, argument))


def test_all_config_files_are_tested_and_state_their_question():
    files = {file.stem: file.read_text() for file in CONFIGS.glob("*.py")}
    assert files.keys() == ARGUMENTS.keys()
    for text in files.values():
        for word in ("Question:", "Run:", "Cost:", "Expect:"):
            assert word in text.partition('"""\n\nfrom')[0]


def test_an_unknown_variant_lists_the_variants():
    with pytest.raises(UserError, match=r"no variant '3'; write FILE\.py:ARGUMENT with one of 1, 4, 16, 64"):
        load("lm30m", "3")


# Parameters in millions (blocks, blocks + one embedding, all) and tokens: Marek et al. 2025, Table 1.
PAPER = {
    "lm30m": (50257, (11, 30, 49), 598e6),
    "lm19m": (32101, (19, 35, 52), 706e6),
    "gpt2s": (50257, (85, 124, 162), 2.47e9),
    "gpt3xl": (50257, (1200, 1300, 1400), 10e9),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_configs_have_the_sizes_and_budgets_of_the_paper(name):
    vocab_size, sizes, tokens = PAPER[name]
    c = load(name)
    blocks = 12 * c.model.layers * c.model.width**2  # 4 D^2 of attention and 8 D^2 of MLP a block
    embedding = vocab_size * c.model.width
    counted = [blocks / 1e6, (blocks + embedding) / 1e6, (blocks + 2 * embedding) / 1e6]
    assert counted == [pytest.approx(size, abs=50 if size > 1000 else 0.62) for size in sizes]
    assert c.model.ffn_width is None and c.model.head_width == 128
    assert c.train.budget_tokens == pytest.approx(tokens, rel=2e-3)
    assert (c.optimizer.warmup_frac, c.optimizer.schedule, c.optimizer.final_lr_frac) == (0.05, "cosine", 0.0)


@pytest.mark.parametrize("name", PAPER)
def test_all_batch_sizes_of_a_paper_config_have_the_same_budget(name):
    budgets = {load(name, argument).train.budget_tokens for argument in ARGUMENTS[name]}
    assert len(budgets) == 1


def test_an_unset_learning_rate_is_the_default_of_the_optimizer():
    unset, written = config.quickstart(), config.quickstart()
    written.optimizer.peak_lr = 0.003
    assert unset.optimizer.peak_lr is None
    assert config.fingerprint(unset) == config.fingerprint(written)
    assert config.differences(unset.to_dict(), written.to_dict()) == []
    assert config.resolved(unset) == written.to_dict()


@pytest.mark.parametrize("name", ["lr", "optimizer.lr", "optimizer.learning_rate"])
def test_names_of_other_trainers_lead_to_our_key(name):
    assert "did you mean optimizer.peak_lr?" in config.unknown_key(name)
