"""Measure how much text a tokenizer loses: decode what it encoded, and compare with the documents.

Lost bytes are the UTF-8 bytes of the characters that a document has more often than its decoded tokens have. Where no
character is missing and the texts still differ, such as by spaces that decoding inserts, they are the bytes that
decoding added, because then several texts share those tokens. One space at the start of a document does not count:
sentencepiece encodes "a" and " a" alike, and decoding cannot tell which it was.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from smallbatch.data.tokenizers import Tokenizer
from smallbatch.errors import UserError

LARGEST_LOST_FRAC = 0.01
ALL_CHECKED_BYTES = 2**24  # so much training text is checked whole; decoding adds a sixth to the time of encoding
CHECKED_ONE_IN = 8  # training documents after that; validation documents are all checked
EXAMPLE_CHARACTERS = 40


def lost_bytes(text: str, decoded: str) -> int:
    """Return how many bytes of a document are not in its decoded tokens."""
    if text in (decoded, " " + decoded) or decoded == " " + text:
        return 0
    before, after = Counter(text), Counter(decoded)
    size_bytes = len(text.encode("utf-8"))
    return _bytes(before - after) or min(_bytes(after - before), size_bytes) or size_bytes


def _bytes(characters: Counter[str]) -> int:
    return sum(count * len(character.encode("utf-8")) for character, count in characters.items())


class LossCheck:
    """Counts lost bytes over a corpus: of all validation documents, and of a sample of the training documents.

    The sample is the first ALL_CHECKED_BYTES of training text and then every CHECKED_ONE_IN-th document.
    """

    def __init__(self, tokenizer: Tokenizer, tokenizer_name: str):
        self._tokenizer, self._name = tokenizer, tokenizer_name
        self._training_documents = self._training_bytes = 0
        self._checked_bytes = self._lost_bytes = 0
        self._example = ""

    def add(self, texts: Sequence[str], batch: Sequence[np.ndarray], validation: bool) -> None:
        """Compare documents with their encoded form.

        Raises: UserError once ALL_CHECKED_BYTES are checked and more than LARGEST_LOST_FRAC of them is lost.
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
        """Share of the checked bytes that is lost."""
        return self._lost_bytes / self._checked_bytes if self._checked_bytes else 0.0

    def raise_if_too_much(self) -> None:
        """Raise UserError if the share of lost bytes is above LARGEST_LOST_FRAC."""
        if self.lost_frac > LARGEST_LOST_FRAC:
            raise UserError(
                f"{self._summary()}; at most {LARGEST_LOST_FRAC:.0%} may be lost. Use a tokenizer that covers this "
                "text, such as data.tokenizer=bytes or bpe:8192; add a decoder to a tokenizer.json that has none"
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
