"""Which documents are held out: decided by each one's own content, up to a size of the validation set.

So duplicates stay on one side, and neither the order of the corpus nor its other documents can move one
across.
"""

import hashlib

SPLIT_RULE = (
    "A document is held out if the 8-byte blake2b digest of its content, as a little-endian part of 2^64, "
    "is below validation_frac. Held-out documents are the validation set in corpus order, up to the first "
    "that would take it beyond validation_max_bytes; that one and all later ones are unused."
)


def is_held_out(content: bytes, validation_frac: float) -> bool:
    """Tell whether a document is kept out of training."""
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little") < validation_frac * 2**64


class Splitter:
    """Assigns documents, in corpus order, to 'train', 'validation' or 'unused', and counts the unused."""

    def __init__(self, validation_frac: float, validation_max_bytes: int):
        self._frac = validation_frac
        self._bytes_left = validation_max_bytes
        self.unused_documents = self.unused_bytes = 0

    def side(self, content: bytes, size_bytes: int) -> str:
        """Return the side of the next document; `content` decides, `size_bytes` counts towards the limit."""
        if not is_held_out(content, self._frac):
            return "train"
        if not self.unused_documents and size_bytes <= self._bytes_left:
            self._bytes_left -= size_bytes
            return "validation"
        self.unused_documents += 1
        self.unused_bytes += size_bytes
        return "unused"
