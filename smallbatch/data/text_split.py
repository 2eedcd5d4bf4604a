"""Assign the documents of a text corpus to training and validation.

Documents are assigned by a hash of their text. If that assigns all documents to one split, as with a single book, the
end of the text is the validation set, as for files of tokens.
"""

from collections.abc import Iterable, Iterator

from smallbatch.data import sources
from smallbatch.data.validation_split import SPLIT_RULE, Splitter, is_held_out
from smallbatch.runs.progress import Progress
from smallbatch.specs import DataSpec

LINE_END_SEARCH_CHARACTERS = 1024
TAIL_RULE = (
    "The hash of their content leaves all documents on one side, so the last validation_frac of the text's bytes is "
    "held out. It is the validation set up to validation_max_bytes; the rest of it is unused. A part ends after the "
    f"last line end within {LINE_END_SEARCH_CHARACTERS} characters before its limit, or else at the last whole "
    "character. The parts of a document that is cut count as documents."
)


class HashSplit:
    """Assigns whole documents by a hash of their content."""

    rule = SPLIT_RULE
    notes: tuple[str, ...] = ()

    def __init__(self, spec: DataSpec):
        self._spec = spec

    def assign(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield (side, text) of each document in order; a side is train, validation or unused."""
        splitter = Splitter(self._spec.validation_frac, self._spec.validation_max_bytes)
        for text in texts:
            content = text.encode("utf-8")
            yield splitter.side(content, len(content)), text


class TailSplit:
    """Assigns the start of a corpus to training and its end to validation."""

    rule = TAIL_RULE

    def __init__(self, spec: DataSpec, documents: int, size_bytes: int):
        self._train_bytes = size_bytes - int(size_bytes * spec.validation_frac)
        self._validation_bytes = spec.validation_max_bytes
        corpus = "the corpus is one document" if documents == 1 else f"the corpus is only {documents:,} documents"
        self.notes = (f"{corpus}: the last {spec.validation_frac:.2%} of its text is the validation set",)

    def assign(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield (side, text) of each document, or of each part of a document that is split."""
        limits = {"train": self._train_bytes, "validation": self._validation_bytes}
        for text in texts:
            for side in list(limits):
                part, text = cut_at(text, limits[side])
                if part:
                    limits[side] -= len(part.encode("utf-8"))
                    yield side, part
                if not text:
                    break
                del limits[side]
            if text:
                yield "unused", text


def choose_split(spec: DataSpec) -> HashSplit | TailSplit:
    """Return the split of a corpus. Stops reading as soon as the hash has assigned a document to each split."""
    sides, documents, size_bytes = set(), 0, 0
    with Progress("split", None, unit="bytes") as progress:
        for text in sources.documents(spec):
            content = text.encode("utf-8")
            sides.add(is_held_out(content, spec.validation_frac))
            if len(sides) == 2:
                return HashSplit(spec)
            documents += 1
            size_bytes += len(content)
            progress.update(size_bytes)
    return TailSplit(spec, documents, size_bytes)


def cut_at(text: str, limit_bytes: int) -> tuple[str, str]:
    """Split a text so that its head has at most limit_bytes in UTF-8, at a line end if one is near the limit."""
    content = text.encode("utf-8")
    if len(content) <= limit_bytes:
        return text, ""
    head = content[:limit_bytes].decode("utf-8", errors="ignore")  # drops a character that crosses the limit
    if text[len(head)] == "\n" and head.endswith("\r"):
        head = head[:-1]  # do not split a CRLF
    start = max(0, len(head) - LINE_END_SEARCH_CHARACTERS)
    line_end = max(head.rfind("\n", start), head.rfind("\r", start))
    if line_end >= 0:
        head = head[: line_end + 1]
    return head, text[len(head) :]
