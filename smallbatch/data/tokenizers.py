"""Text <-> token ids: UTF-8 bytes, a byte-level BPE trained on the training documents, or a tokenizer.json.

The spelling of an end-of-document token inside a document is encoded as ordinary text, so that only `prepare` ends a
document.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from smallbatch.data.corpus_files import refuse_lfs_pointer
from smallbatch.errors import UserError
from smallbatch.files import json_files, paths
from smallbatch.runs.progress import Progress
from smallbatch.runs.records import write_json
from smallbatch.specs import LARGEST_VOCAB, SMALLEST_BPE_VOCAB, is_bpe_vocab

CONFIG_FILE = "tokenizer_config.json"
JSON_FILE = "tokenizer.json"
BPE_EOD_TOKEN = "<|endoftext|>"
EOD_TOKENS = (BPE_EOD_TOKEN, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<EOS>", "[EOS]", "<|endofdocument|>")
PART_CHARACTERS = 2**20  # encoding needs 150 bytes of memory per character of a part
PARTS_AT_ONCE = 8
LONE_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
BPE_TRAINING_BYTES = 2**28  # of text, from the start of the training documents


class BytesTokenizer:
    """UTF-8 bytes as tokens: 256 ids. Byte 0xFF never occurs in UTF-8, so id 255 ends a document."""

    vocab_size = 256
    eod_id = 255
    lossless = True  # whether every text equals its decoded tokens, by construction

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(np.asarray(ids, dtype=np.uint8)).decode("utf-8", errors="replace")

    def decode_batch(self, batch: Sequence[np.ndarray]) -> list[str]:
        return [self.decode(ids) for ids in batch]

    def save(self, directory: Path) -> None:
        write_json(directory / CONFIG_FILE, {"kind": "bytes"})


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library, from its tokenizer.json, that adds no special tokens."""

    def __init__(self, backend, eod_token: str, lossless: bool = False):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # the spelling of a special token in a document is ordinary text
        self._backend = backend
        self._eod_token = eod_token
        self.lossless = lossless
        self.eod_id: int = backend.token_to_id(eod_token)
        self.vocab_size: int = 1 + max(backend.get_vocab().values())  # ids may have gaps

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if not self.lossless or max(map(len, texts), default=0) <= PART_CHARACTERS:
            return self._encode(texts)
        return [self._encode_long(text) for text in texts]

    def _encode_long(self, text: str) -> np.ndarray:
        parts, ids = list(parts_of(text)), []
        for start in range(0, len(parts), PARTS_AT_ONCE):
            ids += self._encode(parts[start : start + PARTS_AT_ONCE])
        return np.concatenate(ids)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def decode_batch(self, batch: Sequence[np.ndarray]) -> list[str]:
        return self._backend.decode_batch([ids.tolist() for ids in batch], skip_special_tokens=False)

    def save(self, directory: Path) -> None:
        write_json(directory / JSON_FILE, json.loads(self._backend.to_str()))
        write_json(directory / CONFIG_FILE, {"kind": "json", "eod_token": self._eod_token})


Tokenizer = BytesTokenizer | JsonTokenizer  # encodes documents without the end-of-document token; decodes any ids


def split_tokenizer(tokenizer: str) -> tuple[str, str]:
    """Return the kind of a tokenizer and what follows its colon: 'bpe:8192' -> ('bpe', '8192')."""
    kind, _, rest = tokenizer.partition(":")
    if tokenizer == "bytes" or (kind == "file" and rest) or (kind == "bpe" and is_bpe_vocab(rest)):
        return kind, rest
    raise UserError(
        f"data.tokenizer={tokenizer!r} is invalid; use bytes, bpe:N with a vocabulary N from "
        f"{SMALLEST_BPE_VOCAB} to {LARGEST_VOCAB:,}, or file:PATH of a tokenizer.json"
    )


def fixed(tokenizer: str, eod_token: str | None) -> Tokenizer:
    """Return a tokenizer that is not trained: bytes or file:PATH."""
    kind, rest = split_tokenizer(tokenizer)
    return BytesTokenizer() if kind == "bytes" else from_file(paths.local(rest), eod_token)


def parts_of(text: str) -> Iterator[str]:
    """Yield a text in parts of about PART_CHARACTERS characters; a byte-level BPE gives the same ids as for the whole.

    A part ends after a line end between two non-space characters, because a byte-level BPE never merges across it.
    """
    start = 0
    while len(text) - start > PART_CHARACTERS:
        cut = LONE_LINE_END.search(text, start + PART_CHARACTERS)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


def train_bpe(texts: Iterable[str], vocab_size: int) -> JsonTokenizer:
    """Train a byte-level BPE with `vocab_size` ids, including the end-of-document token.

    Raises: UserError if the texts are too small for that many merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BPE_EOD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((part for text in _first(texts) for part in parts_of(text)), trainer)
    trained = backend.get_vocab_size()
    if trained != vocab_size:
        raise UserError(
            f"the training documents are too small for a vocabulary of {vocab_size}, training stopped at {trained}; "
            f"set data.tokenizer=bpe:{trained} or less"
        )
    return JsonTokenizer(backend, BPE_EOD_TOKEN, lossless=True)  # its alphabet is every byte


def _first(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts until they have BPE_TRAINING_BYTES."""
    done_bytes = 0
    with Progress("train the tokenizer", None, unit="bytes") as progress:
        for text in texts:
            yield text
            done_bytes += len(text.encode("utf-8"))
            progress.update(done_bytes)
            if done_bytes >= BPE_TRAINING_BYTES:
                return


def read_file(path: Path) -> bytes:
    """Return the bytes of the tokenizer.json of file:PATH."""
    try:
        refuse_lfs_pointer(path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the tokenizer {path}: {error.strerror or error}; set data.tokenizer=file:PATH to a "
            "tokenizer.json. If a config file sets it, see the docstring of that file for where to get it"
        ) from error


def from_file(path: Path, eod_token: str | None) -> JsonTokenizer:
    """Read a tokenizer.json; its end-of-document token is `eod_token` or else the first of EOD_TOKENS in it."""
    from tokenizers import Tokenizer

    content = read_file(path)
    try:
        backend = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for anything it cannot parse
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a tokenizer.json of the tokenizers library ({reason})") from error
    names = EOD_TOKENS if eod_token is None else (eod_token,)
    found = next((name for name in names if backend.token_to_id(name) is not None), None)
    if found is None:
        raise UserError(
            f"{path} has no end-of-document token {' or '.join(names)}; set data.eod_token to the one that it has"
        )
    tokenizer = JsonTokenizer(backend, found)
    if tokenizer.vocab_size > LARGEST_VOCAB:
        raise UserError(
            f"{path} has a token id {tokenizer.vocab_size - 1:,}, but ids must be below {LARGEST_VOCAB:,}; use another "
            "tokenizer, or number its tokens without gaps"
        )
    return tokenizer


def load(directory: Path) -> Tokenizer | None:
    """Load the tokenizer that `save` wrote to a run or dataset directory; return None if there is none."""
    path = directory / CONFIG_FILE
    if not paths.exists(path):
        return None
    config = json_files.read(path)
    if config == {"kind": "bytes"}:
        return BytesTokenizer()
    if isinstance(config, dict) and config.get("kind") == "json" and isinstance(config.get("eod_token"), str):
        return from_file(directory / JSON_FILE, config["eod_token"])
    raise UserError(f"{path} is damaged, or from another version; delete the directory {directory} and create it again")
