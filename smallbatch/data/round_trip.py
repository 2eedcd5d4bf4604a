"""Measure how much text a tokenizer loses, by comparing each document with its decoded tokens.

Lost bytes are the UTF-8 bytes of the characters that occur more often in a document than in its decoded tokens. If no
character is missing but the texts differ, for example by spaces that decoding inserts, they are the bytes that decoding
added, because several texts then have the same tokens. One space at the start of a document is ignored: sentencepiece
encodes "a" and " a" identically.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from smallbatch.data.tokenizers import Tokenizer
from smallbatch.errors import UserError

MAX_LOST_FRAC = 0.01
ENOUGH_BYTES = 2**24  # after this much text, a loss above the limit is an error at once
EXAMPLE_CHARACTERS = 40


def lost_bytes(text: str, decoded: str) -> int:
    """Return how many bytes of a document are lost in its decoded tokens."""
    if text in (decoded, " " + decoded) or decoded == " " + text:
        return 0
    before, after = Counter(text), Counter(decoded)
    size_bytes = len(text.encode("utf-8"))
    return _bytes(before - after) or min(_bytes(after - before), size_bytes) or size_bytes


def _bytes(characters: Counter[str]) -> int:
    return sum(count * len(character.encode("utf-8")) for character, count in characters.items())


class LossCheck:
    """Counts the lost bytes of all documents. Decoding takes a sixth of the time of encoding.

    tokenizer: None for a corpus of tokens, which cannot be checked.
    together: whether both splits come from one corpus. Otherwise each of them has its own limit.
    """

    def __init__(self, tokenizer: Tokenizer | None, tokenizer_name: str, together: bool):
        self._tokenizer, self._name, self._together = tokenizer, tokenizer_name, together
        self._checked_bytes: Counter[str] = Counter()  # {split: bytes}; the split is "" for a single corpus
        self._lost_bytes: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, split: str, texts: Sequence[str], ids: Sequence[np.ndarray]) -> None:
        """Compare documents with their decoded tokens.

        Raises: UserError if, after ENOUGH_BYTES, the lost fraction is above MAX_LOST_FRAC.
        """
        if self._tokenizer is None or self._tokenizer.lossless:
            return
        corpus = "" if self._together else split
        for text, decoded in zip(texts, self._tokenizer.decode_batch(ids), strict=True):
            self._checked_bytes[corpus] += len(text.encode("utf-8"))
            if lost := lost_bytes(text, decoded):
                self._lost_bytes[corpus] += lost
                self._examples.setdefault(corpus, _example(text, decoded))
        if self._checked_bytes[corpus] >= ENOUGH_BYTES:
            self.raise_if_too_much()

    @property
    def lost_frac(self) -> float | None:
        """The lost fraction of the checked bytes, in the corpus where it is larger; None for a corpus of tokens."""
        if self._tokenizer is None:
            return None
        return max((lost / self._checked_bytes[corpus] for corpus, lost in self._lost_bytes.items()), default=0.0)

    def raise_if_too_much(self) -> None:
        """Raise UserError if the lost fraction of a corpus is above MAX_LOST_FRAC."""
        for corpus, lost in self._lost_bytes.items():
            if lost > MAX_LOST_FRAC * self._checked_bytes[corpus]:
                raise UserError(
                    f"{self._summary(corpus)}; at most {MAX_LOST_FRAC:.0%} may be lost. Use a tokenizer that covers "
                    "this text, such as data.tokenizer=bytes or bpe:8192, or add the missing decoder to its "
                    "tokenizer.json"
                )

    def notes(self) -> list[str]:
        """Return a warning for each corpus from which text is lost."""
        return [f"warning: {self._summary(corpus)}. bits_per_byte is not reported." for corpus in self._lost_bytes]

    def _summary(self, corpus: str) -> str:
        lost, checked = self._lost_bytes[corpus], self._checked_bytes[corpus]
        of = f" of the {corpus} set" if corpus else ""
        return (
            f"data.tokenizer={self._name} loses {100 * lost / checked:.2g}% of the text{of} ({lost:,} of "
            f"{checked:,} bytes do not survive encode and decode, such as {self._examples[corpus]})"
        )


def _example(text: str, decoded: str) -> str:
    """Return the first difference between two texts: 'Привет' -> '<unk>'."""
    differs = (i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b)
    start = max(0, next(differs, min(len(text), len(decoded))) - EXAMPLE_CHARACTERS // 4)
    shown = slice(start, start + EXAMPLE_CHARACTERS)
    return f"{text[shown]!r} -> {decoded[shown]!r}"
