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

LARGEST_LOST_FRAC = 0.01
ALL_CHECKED_BYTES = 2**24  # of training text that are all checked; decoding takes a sixth of the time of encoding
CHECKED_ONE_IN = 8  # of the training documents after that; all validation documents are checked
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
    """Counts lost bytes over a corpus, in all validation documents and in a sample of the training documents.

    The sample is the first ALL_CHECKED_BYTES of training text and then every CHECKED_ONE_IN-th document.
    """

    def __init__(self, tokenizer: Tokenizer, tokenizer_name: str):
        self._tokenizer, self._name = tokenizer, tokenizer_name
        self._training_documents = self._training_bytes = 0
        self._checked_bytes = self._lost_bytes = 0
        self._example = ""

    def add(self, texts: Sequence[str], batch: Sequence[np.ndarray], validation: bool) -> None:
        """Compare documents with their decoded tokens.

        Raises: UserError if, after ALL_CHECKED_BYTES or more, the lost fraction is above LARGEST_LOST_FRAC.
        """
        if self._tokenizer.lossless:
            return
        chosen = range(len(texts)) if validation else self._sample(texts)
        for index, decoded in zip(chosen, self._tokenizer.decode_batch([batch[i] for i in chosen]), strict=True):
            text = texts[index]
            self._checked_bytes += len(text.encode("utf-8"))
            if lost := lost_bytes(text, decoded):
                self._lost_bytes += lost
                self._example = self._example or _example(text, decoded)
        if self._checked_bytes >= ALL_CHECKED_BYTES:
            self.raise_if_too_much()

    def _sample(self, texts: Sequence[str]) -> list[int]:
        chosen = []
        for index, text in enumerate(texts):
            if self._training_bytes < ALL_CHECKED_BYTES or self._training_documents % CHECKED_ONE_IN == 0:
                chosen.append(index)
            self._training_documents += 1
            self._training_bytes += len(text.encode("utf-8"))
        return chosen

    @property
    def lost_frac(self) -> float:
        """The fraction of the checked bytes that is lost."""
        return self._lost_bytes / self._checked_bytes if self._checked_bytes else 0.0

    def raise_if_too_much(self) -> None:
        """Raise UserError if the fraction of lost bytes is above LARGEST_LOST_FRAC."""
        if self.lost_frac > LARGEST_LOST_FRAC:
            raise UserError(
                f"{self._summary()}; at most {LARGEST_LOST_FRAC:.0%} may be lost. Use a tokenizer that covers this "
                "text, such as data.tokenizer=bytes or bpe:8192, or add the missing decoder to its tokenizer.json"
            )

    def notes(self) -> list[str]:
        """Return a warning for the dataset's notes if any text is lost."""
        return [f"warning: {self._summary()}. bits_per_byte is not reported."] if self._lost_bytes else []

    def _summary(self) -> str:
        return (
            f"data.tokenizer={self._name} loses {100 * self.lost_frac:.2g}% of the text "
            f"({self._lost_bytes:,} of {self._checked_bytes:,} bytes do not survive encode and decode, "
            f"such as {self._example})"
        )


def _example(text: str, decoded: str) -> str:
    """Return the first difference between two texts: 'Привет' -> '<unk>'."""
    differs = (i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b)
    start = max(0, next(differs, min(len(text), len(decoded))) - EXAMPLE_CHARACTERS // 4)
    shown = slice(start, start + EXAMPLE_CHARACTERS)
    return f"{text[shown]!r} -> {decoded[shown]!r}"
