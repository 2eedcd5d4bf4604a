"""Configs: every rule fires with words that help, the fingerprint follows the numbers, files are valid."""

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
from smallbatch.config import checks as config_checks
from smallbatch.config import data_checks as config_data
from smallbatch.config import files as config_files
from smallbatch.data import tokenizers
from smallbatch.errors import UserError
from smallbatch.specs import OPTIMIZER_KEYS

CONFIGS = Path(__file__).parents[1] / "configs"


def problems(**overrides):
    """Return what is wrong with the quickstart after overrides; 'section__key' stands for section.key."""
    values = config.quickstart().to_dict()
    values["train"] |= {"batch_size": 16, "budget_tokens": 2**21}
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    try:
        config.validate(ConfigDict(values))
    except UserError as error:
        lines = str(error).split("\n  ")
        return lines if len(lines) == 1 else lines[1:]
    return []


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("train", "batch_sise", 1, "there is no key train.batch_sise; did you mean train.batch_size?"),
        ("mesh", "peak_lr", 1.0, "there is no key mesh.peak_lr; did you mean optimizer.peak_lr?"),
        ("train", "batch_size", "1", "train.batch_size is '1', but must be a whole number"),
        ("mesh", "data", 1.5, "mesh.data is 1.5, but must be a whole number"),
    ],
)
def test_a_change_in_python_is_refused_in_one_line(section, key, value, words):
    c = config.quickstart()
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        setattr(c[section], key, value)
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        c.update_from_flattened_dict({f"{section}.{key}": value})
    assert copy.deepcopy(c) == c == config.quickstart() and "FieldReference" not in repr(c)


def test_base_is_locked_and_leaves_open_only_the_pairs():
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


def test_the_quickstart_is_valid_and_unshared():
    assert problems() == []
    config.quickstart().train.seed = 5
    assert config.quickstart().train.seed == 0


VALID = [
    {"optimizer__b1": 0.0},
    {"optimizer__b2": 0.95, "optimizer__t2_tokens": None},
    {"optimizer__warmup_frac": None, "optimizer__warmup_tokens": 0},
    {"optimizer__warmup_frac": 1.0},
    {"optimizer__name": "sgd", "optimizer__peak_lr": 0.3, "optimizer__b1": None, "optimizer__t2_tokens": None},
    {"optimizer__schedule": "linear", "optimizer__final_lr_frac": 0.1},
    {"train__microbatch_size": 4},
    {"train__log_every_tokens": 1},
    {"train__checkpoint_every_secs": 0.0},
    {"train__sample_tokens": 0, "train__sample_prompt": ""},
    {"data__tokenizer": "bpe:258"},
    {"data__tokenizer": "file:t.json", "data__eod_token": "</s>"},
    {"data__source": "tfds:c4/en", "data__split": "validation", "data__text_key": "body"},
    {"data__source": "text:**/*.txt", "data__document_separator": "\n\n"},
    {"data__source": "tokens:t.bin", "data__tokens_vocab_size": 65536, "data__tokens_eod_id": 65535},
    {"data__source": "tokens:t.bin", "data__tokens_vocab_size": 70000, "data__tokens_dtype": "uint32"},
    {"data__source": "tokens:t.bin", "data__tokens_vocab_size": 9, "data__tokenizer": "file:t.json"},
    {"data__source": "tokens:t*.bin", "data__tokens_vocab_size": 9, "data__validation_source": "tokens:val.bin"},
    {"data__source": "tfds:c4/en", "data__validation_source": "split:validation"},
    {"data__validation_source": "text:val.jsonl", "data__text_key": "body"},
    {"model__head_width": 128},
    {"train__budget_tokens": 5000},  # rounded up to whole updates
    {"optimizer__peak_lr": None},
]  # fmt: skip


@pytest.mark.parametrize("overrides", VALID, ids=str)
def test_what_is_allowed_passes(overrides):
    assert problems(**overrides) == []


INVALID = [
    ({"train__batch_size": True}, "train.batch_size is True; it takes a whole number"),
    ({"train__batch_size": "16"}, "train.batch_size is '16'; it takes a whole number"),
    ({"train__batch_size": None}, "train.batch_size cannot be unset; it takes a whole number"),
    ({"train__batch_size": 0}, "train.batch_size is 0; it must be at least 1"),
    ({"mesh__fsdp": -1}, "mesh.fsdp is -1; it must be at least 1"),
    ({"optimizer__peak_lr": math.nan}, "optimizer.peak_lr is nan; it must be a finite number"),
    ({"optimizer__peak_lr": math.inf}, "optimizer.peak_lr is inf; it must be a finite number"),
    ({"optimizer__peak_lr": 0.0}, "optimizer.peak_lr is 0.0; it must be above 0"),
    ({"optimizer__b1": 1.0}, "optimizer.b1 is 1.0; it must be at least 0 and below 1"),
    ({"optimizer__weight_decay": -0.1}, "optimizer.weight_decay is -0.1; it must be at least 0"),
    ({"optimizer__warmup_frac": 1.5}, "optimizer.warmup_frac is 1.5; it must be between 0 and 1"),
    ({"data__validation_frac": 1.0}, "data.validation_frac is 1.0; it must be above 0 and below 1"),
    ({"train__seed": 2**32}, "train.seed is 4294967296; it must be at least 0 and below 2^32"),
    ({"optimizer__name": "adan"},
     f"optimizer.name is 'adan'; it takes {' | '.join(OPTIMIZER_KEYS)}; did you mean adam?"),
    ({"model__remat": "Full"}, "model.remat is 'Full'; it takes none | dots | full; did you mean full?"),
    ({"data__source": "pystdlb"}, "data.source is 'pystdlb'; it takes pystdlib | tfds:NAME | text:GLOB | "
     "tokens:GLOB; did you mean pystdlib?"),
    ({"data__source": "tfds:"}, "data.source is 'tfds:'; it takes pystdlib | tfds:NAME | text:GLOB | "
     "tokens:GLOB; did you mean tfds?"),
    ({"data__validation_source": "txt:v.txt"}, "data.validation_source is 'txt:v.txt'; it takes text:GLOB | "
     "tokens:GLOB | split:TFDS_SPLIT; did you mean text?"),
    ({"data__validation_source": "split:test"},
     "data.validation_source is 'split:test', which needs data.source tfds:NAME, not 'pystdlib'; use text:GLOB or "
     "tokens:GLOB"),
    ({"data__source": "tfds:c4/en", "data__validation_source": "split:train"},
     "data.validation_source is 'split:train', which is data.split, the training set; choose another split"),
    ({"data__validation_source": "tokens:v.bin"}, "data.validation_source is 'tokens:v.bin' and data.source is "
     "'pystdlib'; use tokens:GLOB for both, or text:GLOB with a text source"),
    ({"data__validation_source": "text:v.txt", "data__validation_frac": 0.1}, "data.validation_frac is 0.1, which "
     "has no effect with data.validation_source set; leave it at 0.05"),
    ({"data__tokenizer": "byte"}, "data.tokenizer is 'byte'; it takes bytes | bpe:VOCABULARY | file:PATH; "
     "did you mean bytes?"),
    ({"data__tokenizer": "bpe:257"},
     "data.tokenizer is 'bpe:257'; the vocabulary must be a whole number from 258 to 16,777,216"),
    ({"data__tokenizer": "bpe:1e4"},
     "data.tokenizer is 'bpe:1e4'; the vocabulary must be a whole number from 258 to 16,777,216"),
    ({"data__eod_token": "</s>"},
     "data.eod_token is '</s>', which has no effect with data.tokenizer 'bytes'; "
     "--config.data.eod_token=None"),
    ({"data__split": "test"}, "data.split is 'test', which has no effect with data.source 'pystdlib'; "
     "leave it at 'train'"),
    ({"data__tokens_vocab_size": 9}, "data.tokens_vocab_size is 9, which has no effect with data.source "
     "'pystdlib'; leave it at None"),
    ({"data__source": "tokens:t.bin"}, "data.tokens_vocab_size is unset; data.source tokens:PATH needs it, "
     "e.g. 50257 for GPT-2 tokens"),
    ({"data__source": "tokens:t.bin", "data__tokens_vocab_size": 70000},
     "data.tokens_vocab_size is 70000; uint16 tokens allow 2 to 65536"),
    ({"data__source": "tokens:t.bin", "data__tokens_vocab_size": 9, "data__tokens_eod_id": 9},
     "data.tokens_eod_id is 9; it must be below data.tokens_vocab_size, 9"),
    ({"data__source": "tokens:t.bin", "data__tokens_dtype": "uint32", "data__tokens_vocab_size": 2**24 + 1},
     "data.tokens_vocab_size is 16777217; uint32 tokens allow 2 to 16777216"),
    ({"data__source": "tokens:t.bin", "data__tokens_vocab_size": 9, "data__tokenizer": "bpe:300"},
     "data.tokenizer is 'bpe:300', which has no effect with data.source 'tokens:t.bin'; leave it at 'bytes'"),
    ({"data__cache_dir": ""}, "data.cache_dir is empty; set it to a directory"),
    ({"model__head_width": 48}, "model.head_width is 48, which does not divide model.width, 128"),
    ({"model__head_width": 1}, "model.head_width is 1; rotary positions need an even number"),
    ({"optimizer__b2": 0.99}, "optimizer.b2 is 0.99 and optimizer.t2_tokens is 1000000.0; set exactly one: "
     "--config.optimizer.b2=None or --config.optimizer.t2_tokens=None"),
    ({"optimizer__t2_tokens": None}, "neither optimizer.b2 nor optimizer.t2_tokens is set; set exactly one"),
    ({"optimizer__warmup_tokens": 5}, "optimizer.warmup_frac is 0.05 and optimizer.warmup_tokens is 5; set "
     "exactly one: --config.optimizer.warmup_frac=None or --config.optimizer.warmup_tokens=None"),
    ({"optimizer__warmup_tokens": 2**21 + 1, "optimizer__warmup_frac": None},
     "optimizer.warmup_tokens is 2,097,153, above train.budget_tokens, 2,097,152"),
    ({"optimizer__name": "sgd", "optimizer__peak_lr": 0.3, "optimizer__b1": None},
     "optimizer.t2_tokens is 1000000.0, which has no effect with optimizer.name sgd; "
     "--config.optimizer.t2_tokens=None"),
    ({"optimizer__name": "sgd", "optimizer__peak_lr": 0.3, "optimizer__b1": None, "optimizer__t2_tokens": None,
      "optimizer__eps": 1e-6},
     "optimizer.eps is 1e-06, which has no effect with optimizer.name sgd; leave it at 1e-08"),
    ({"optimizer__nesterov": True},
     "optimizer.nesterov is True, which has no effect with optimizer.name adam; leave it at False"),
    ({"optimizer__name": "momentum", "optimizer__peak_lr": 0.3, "optimizer__b1": None, "optimizer__t2_tokens": None},
     "neither optimizer.b1 nor optimizer.t1_tokens is set; set exactly one"),
    ({"optimizer__b2": 0.99, "optimizer__t2_tokens": None, "optimizer__b2_min": 0.95},
     "optimizer.b2_min is 0.95, which has no effect with optimizer.b2 0.99: it limits the decay from t2_tokens; "
     "--config.optimizer.b2_min=None"),
    ({"optimizer__b2_min": 0.999, "optimizer__b2_max": 0.99},
     "optimizer.b2_min is 0.999, above optimizer.b2_max, 0.99"),
    ({"optimizer__transfer_rule": "sqrt"},
     "optimizer.tuned_at_batch_size is unset; optimizer.transfer_rule sqrt needs it"),
    ({"optimizer__transfer_rule": "half_life", "optimizer__tuned_at_batch_size": 8},
     "optimizer.lr_exponent is unset; optimizer.transfer_rule half_life needs it: 0 keeps the learning rate, "
     "0.16 to 0.25 was tuned for Adam"),
    ({"optimizer__transfer_rule": "linear", "optimizer__tuned_at_batch_size": 8, "optimizer__lr_exponent": 0.5},
     "optimizer.lr_exponent is 0.5, which has no effect with optimizer.transfer_rule linear; "
     "--config.optimizer.lr_exponent=None"),
    ({"optimizer__lr_exponent": 0.5}, "optimizer.lr_exponent is 0.5, which has no effect with "
     "optimizer.transfer_rule None; --config.optimizer.lr_exponent=None"),
    ({"optimizer__schedule": "wsd_sqrt"},
     "optimizer.decay_frac is unset; optimizer.schedule wsd_sqrt needs it, e.g. 0.2"),
    ({"optimizer__schedule": "wsd_linear", "optimizer__decay_frac": 0.96},
     "the warm-up, 0.05 of the budget, and optimizer.decay_frac, 0.96, exceed it"),
    ({"optimizer__schedule": "wsd_linear", "optimizer__decay_frac": 0.75, "optimizer__warmup_frac": None,
      "optimizer__warmup_tokens": 2**20}, "the warm-up, 0.5 of the budget, and optimizer.decay_frac, 0.75, exceed it"),
    ({"optimizer__decay_frac": 0.2}, "optimizer.decay_frac is 0.2, which has no effect with optimizer.schedule "
     "cosine; --config.optimizer.decay_frac=None"),
    ({"optimizer__schedule": "constant", "optimizer__final_lr_frac": 0.1},
     "optimizer.final_lr_frac is 0.1, which has no effect with optimizer.schedule constant; leave it at 0.0"),
    ({"train__microbatch_size": 5}, "train.microbatch_size 5 does not divide train.batch_size, 16; the next "
     "smaller one is 4"),
    ({"train__microbatch_size": 32},
     "train.microbatch_size 32 does not divide train.batch_size, 16; the next smaller one is 16"),
    ({"train__budget_tokens": 2**53}, "train.budget_tokens: 9,007,199,254,740,992 tokens are 2,199,023,255,552 "
     "updates, and at most 2,147,483,647 are allowed; lower train.budget_tokens, or raise train.batch_size"),
    ({"train__batch_size_schedule": "5000:8", "train__batch_size_lr_rule": "none"},
     "train.batch_size_schedule: from 0 to 5,000 tokens: a budget of 5,000 tokens is not a whole number of steps of "
     "4,096 tokens (batch size x context); nearest: 4,096 or 8,192"),
    ({"train__batch_size_schedule": f"4096:{2**24 + 1}", "train__batch_size_lr_rule": "none"},
     "train.batch_size_schedule: '4096:16777217' has a batch size above the maximum, 16,777,216; choose a smaller one"),
    # A learning rate belongs to an optimizer.
    ({"optimizer__name": "sgd", "optimizer__b1": None, "optimizer__t2_tokens": None},
     "optimizer.peak_lr is unset, and sgd has no default (only 0.003 for adam); set --config.optimizer.peak_lr "
     "to a learning rate tuned for sgd"),
    # What float32 cannot hold.
    ({"optimizer__peak_lr": 1e39}, "optimizer.peak_lr is 1e+39, which is above the largest float32 number, 3.40e+38; "
     "choose a number in the range of float32"),
    ({"optimizer__eps": 1e-40}, "optimizer.eps is 1e-40, which is below the smallest float32 number, 1.18e-38, and "
     "would become 0; choose a number in the range of float32"),
    ({"optimizer__clip_norm": 1e39}, "optimizer.clip_norm is 1e+39, which is above the largest float32 number, "
     "3.40e+38; choose a number in the range of float32"),
    # What no machine can hold.
    ({"model__layers": 10**6}, "model.layers is 1000000; it must be at most 1,024"),
    ({"mesh__cpu_devices": 10**6}, "mesh.cpu_devices is 1000000; it must be at most 256"),
    ({"train__steps_per_dispatch": 10**9}, "train.steps_per_dispatch is 1000000000; it must be at most 65,536"),
    ({"train__steps_per_dispatch": 2**16, "train__batch_size": 512},
     "train.steps_per_dispatch is 65,536, or 8,589,934,592 tokens on the devices; at most 1,073,741,824 "
     "are allowed: use 8,192 or less"),
    ({"train__log_every_tokens": 10**400}, "train.log_every_tokens is above 10^398; it must be at most "
     "9,007,199,254,740,992"),
    ({"train__checkpoint_every_secs": 10**400},
     "train.checkpoint_every_secs is above 10^398; it must be a finite number"),
    # Rules that hold for some optimizers.
    ({"optimizer__name": "sgd", "optimizer__peak_lr": 0.3, "optimizer__b1": None, "optimizer__t2_tokens": None,
      "optimizer__transfer_rule": "sqrt", "optimizer__tuned_at_batch_size": 8},
     "optimizer.transfer_rule is sqrt, which needs an optimizer that divides by the root of a second moment (adam, "
     "adafactor, schedule_free_adamw), and optimizer.name is sgd; use linear, fixed or half_life"),
    ({"optimizer__transfer_keeps_tau": True}, "optimizer.transfer_keeps_tau is True, which has no effect with "
     "optimizer.transfer_rule None; leave it at False"),
    ({"optimizer__transfer_rule": "linear", "optimizer__tuned_at_batch_size": 8, "optimizer__transfer_keeps_tau": True},
     "optimizer.transfer_keeps_tau is True, which has no effect with optimizer.weight_decay 0; leave it at False"),
    ({"optimizer__muon_matrices": "heads"},
     "optimizer.muon_matrices is 'heads', which has no effect with optimizer.name adam; leave it at 'whole'"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), INVALID, ids=str)
def test_what_is_wrong_is_said_with_what_is_allowed(overrides, words):
    assert problems(**overrides) == [words]


def test_every_problem_is_told_at_once_also_beside_a_wrong_type():
    found = problems(train__batch_size="x", model__width=-1, optimizer__b2=0.9, data__source="no", train__seed=-1)
    assert len(found) == 5


def test_unknown_and_missing_keys_are_problems():
    values = config.quickstart().to_dict()
    values["train"]["batch_sise"] = values["train"].pop("batch_size")
    with pytest.raises(UserError) as raised:
        config.validate(ConfigDict(values))
    assert "unknown key train.batch_sise; did you mean train.batch_size?" in str(raised.value)
    assert "train.batch_size is missing" in str(raised.value)


def test_every_rule_names_keys_that_exist():
    named = [*config_checks.CHOICES, *config_data.SOURCES_OF, *config.WITHOUT_EFFECT_ON_NUMBERS]
    named += [key for _, keys in config_checks.RANGES.values() for key in keys]
    named += [key for pair in (*config_checks.AVERAGE_PAIRS.values(), config_checks.WARMUP_PAIR) for key in pair]
    assert set(named) <= config.key_types().keys()


def test_every_number_has_a_range():
    ranged = {key for _, keys in config_checks.RANGES.values() for key in keys}
    numbers = {key for key, (kind, _) in config.key_types().items() if kind in (int, float)}
    assert numbers - ranged == {"data.tokens_vocab_size"}  # whose range depends on the dtype


@pytest.mark.parametrize("size", ["257", "16777217", "99999999999", "9" * 5000, "٣٠٠"])
def test_a_bpe_vocabulary_out_of_bounds_is_refused_by_the_config_as_by_the_tokenizer(size):
    assert "a whole number from 258 to 16,777,216" in problems(data__tokenizer=f"bpe:{size}")[0]
    with pytest.raises(UserError, match="from 258 to 16,777,216"):
        tokenizers.split_tokenizer(f"bpe:{size}")


def another(value, kind):
    return {int: 7, float: 0.7, str: "another", bool: value is False}[kind]


def test_the_fingerprint_changes_with_every_key_that_changes_a_number_and_with_no_other():
    unchanged = []
    for key, (kind, _) in config.key_types().items():
        c = config.quickstart()
        section, _, last = key.partition(".")
        c[section][last] = another(c[section][last], kind)
        if config.fingerprint(c) == config.fingerprint(config.quickstart()):
            unchanged.append(key)
    without_effect = ["data.cache_dir", "data.tfds_data_dir"]
    without_effect += [f"mesh.{axis}" for axis in ("cpu_devices", "data", "fsdp", "sequence", "tensor")]
    without_effect += ["records.tensorboard", "records.wandb", "records.wandb_project"]
    without_effect += ["train.checkpoint_every_secs", "train.sample_prompt", "train.sample_tokens"]
    assert sorted(unchanged) == without_effect


def test_the_fingerprint_is_the_same_in_another_process_and_however_a_number_is_written():
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


def test_differences_are_told_with_both_values():
    a, b = config.quickstart(), config.quickstart()
    assert config.differences(a.to_dict(), b.to_dict()) == []
    b.train.batch_size, b.optimizer.b2, b.data.cache_dir = 8, 0.9, "elsewhere"
    old = b.to_dict()
    old["train"]["gone"] = None
    assert config.differences(a.to_dict(), old) == [
        "optimizer.b2: None | 0.9", "train.batch_size: 4 | 8", "train.gone: (no such key) | None"
    ]  # fmt: skip


def test_importing_config_starts_no_jax():
    code = "import sys; from smallbatch import config, config_files, cli; print('jax' in sys.modules)"
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


def test_no_config_file_is_forgotten_and_each_says_what_it_is_for():
    files = {file.stem: file.read_text() for file in CONFIGS.glob("*.py")}
    assert files.keys() == ARGUMENTS.keys()
    for text in files.values():
        for word in ("Question:", "Run:", "Cost:", "Expect:"):
            assert word in text.partition('"""\n\nfrom')[0]


def test_an_unknown_variant_is_listed():
    with pytest.raises(UserError, match=r"no variant '3'; write FILE\.py:ARGUMENT with 1 \| 4 \| 16 \| 64"):
        load("lm30m", "3")


# Parameters in millions (blocks, blocks + one embedding, all) and tokens: Marek et al. 2025, Table 1.
PAPER = {
    "lm30m": (50257, (11, 30, 49), 598e6),
    "lm19m": (32101, (19, 35, 52), 706e6),
    "gpt2s": (50257, (85, 124, 162), 2.47e9),
    "gpt3xl": (50257, (1200, 1300, 1400), 10e9),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_config_has_the_papers_sizes_and_budget(name):
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
def test_all_batch_sizes_of_a_paper_config_share_one_budget(name):
    budgets = {load(name, argument).train.budget_tokens for argument in ARGUMENTS[name]}
    assert len(budgets) == 1


def test_every_whole_number_has_a_largest_value():
    for key, (kind, _) in config.key_types().items():
        if kind is int:
            section, _, name = key.partition(".")
            (found, *_) = problems(**{f"{section}__{name}": 10**400})
            assert "must be" in found, key


def test_an_unset_learning_rate_is_the_default_of_the_optimizer():
    unset, written = config.quickstart(), config.quickstart()
    written.optimizer.peak_lr = 0.003
    assert unset.optimizer.peak_lr is None
    assert config.fingerprint(unset) == config.fingerprint(written)
    assert config.differences(unset.to_dict(), written.to_dict()) == []
    assert config.resolved(unset) == written.to_dict()
