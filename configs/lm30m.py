"""The 30M model of Marek et al. 2025 (arXiv 2507.07101), Figure 1a: a tuned Adam run at one batch size.

Question: is batch size 1 as good as any other, once the second moment's half-life is fixed in tokens?
Run:      python -m smallbatch.train --config=configs/lm30m.py:16
          16 is the batch size: 1, 4, 16, 64, 256, 1024 or 4096
Data:     FineWeb-Edu with the GPT-2 vocabulary. One file of its 10BT sample is enough (0.7B tokens, 2 GB):
            hf download HuggingFaceFW/fineweb-edu sample/10BT/000_00000.parquet --repo-type dataset \\
                --local-dir data/fineweb-edu
            hf download openai-community/gpt2 tokenizer.json --local-dir data/gpt2
          A flat file of GPT-2 tokens works as well: --config.data.source=tokens:train.bin
          --config.data.tokens_vocab_size=50257 --config.data.tokenizer=bytes
Size:     30M counts active parameters: 10.6M in the blocks and 19.3M in one of two embeddings; 49M in all.
Cost:     598M tokens (20 per active parameter), 285 steps at batch size 4096 and 1,167,360 at 1, 1.2e17
          FLOPs; 24 minutes on one TPU v4 chip in the paper, at batch sizes that keep it busy.
Expect:   validation loss 3.69 nats (batch size 1), 3.73 (4, 16, 64), 3.75 (256), 3.94 (1024), above 4.9
          (4096), read off Figure 1a. The paper scores each batch size on another validation set, we do not,
          and its code starts from smaller weights: compare the differences, not the third digit.
"""

from smallbatch import config

TUNED_LR = {"1": 0.0017, "4": 0.002, "16": 0.002, "64": 0.003, "256": 0.005, "1024": 0.005, "4096": 0.0025}
LARGEST_STEP_TOKENS = 4096 * 512


def get_config(batch_size: str = "16") -> config.Config:
    c = config.base()
    c.optimizer.peak_lr = config.variant(batch_size, TUNED_LR)
    c.optimizer.b1 = 0.9
    c.optimizer.t2_tokens = 10e6
    c.optimizer.warmup_frac = 0.05

    c.data.source = "text:data/fineweb-edu/sample/10BT/*.parquet"
    c.data.tokenizer = "file:data/gpt2/tokenizer.json"
    c.data.validation_frac = 0.03
    c.data.validation_max_bytes = 90_000_000  # about the paper's 20M tokens

    c.model.width = 384
    c.model.layers = 6
    c.model.head_width = 128
    c.model.context_tokens = 512

    c.train.batch_size = int(batch_size)
    c.train.microbatch_size = min(int(batch_size), 64)
    c.train.budget_tokens = 285 * LARGEST_STEP_TOKENS
    c.train.log_every_tokens = 2**19
    c.train.sample_prompt = "The most important thing about"
    return c
