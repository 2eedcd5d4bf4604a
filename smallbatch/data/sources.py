"""Read a corpus of any kind: `data.source` is KIND or KIND:REST, and `source_KIND.py` reads it.

`specs.SOURCES` has one entry for each kind. It is not defined here because config checks need it and do not import this
package. A module of a text corpus has `identity(spec)` and `documents(spec, skipped)`; a module of a token corpus has
`identity(spec)` and `open_tokens(spec)`.
"""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

from smallbatch.data.corpus_files import Skipped
from smallbatch.errors import UserError
from smallbatch.specs import SOURCES, DataSpec


def split_source(source: str) -> tuple[str, str]:
    """Return the kind of a source and what follows its colon: 'tfds:c4/en' -> ('tfds', 'c4/en')."""
    kind, colon, rest = source.partition(":")
    if kind in SOURCES and bool(colon) == bool(rest) == (":" in SOURCES[kind].form):
        return kind, rest
    forms = ", ".join(entry.form for entry in SOURCES.values())
    raise UserError(f"data.source={source!r} is unknown; use one of {forms}")


def module(spec: DataSpec) -> ModuleType:
    """Return the module that reads the source of a spec."""
    return importlib.import_module(f"smallbatch.data.source_{split_source(spec.source)[0]}")


def holds_tokens(spec: DataSpec) -> bool:
    """Return whether the corpus is token ids instead of text."""
    return SOURCES[split_source(spec.source)[0]].holds_tokens


def validation_spec(spec: DataSpec) -> DataSpec | None:
    """Return the spec that reads all of data.validation_source as the validation set; None if it is unset."""
    source = spec.validation_source
    if source is None:
        return None
    kind, _, rest = source.partition(":")
    forms = SOURCES[split_source(spec.source)[0]].validation_forms
    if not rest or kind not in [form.partition(":")[0] for form in forms]:
        raise UserError(
            f"data.validation_source={source!r} cannot be used with data.source={spec.source!r}; use "
            f"{' or '.join(forms)}"
        )
    whole = replace(spec, validation_source=None, validation_frac=1.0)
    if kind != "split":
        return replace(whole, source=source)
    if rest == spec.split:
        raise UserError(f"data.validation_source={source!r} is data.split, the training set; choose another split")
    return replace(whole, split=rest)


def documents(spec: DataSpec, skipped: Skipped | None = None) -> Iterator[str]:
    """Yield the documents of a corpus in a fixed order, with one in memory at a time; blank documents are omitted.

    Files, rows and lines without text are added to `skipped`.

    Raises: UserError for a corpus that is missing, damaged or without text.
    """
    empty = True
    for text in module(spec).documents(spec, Skipped() if skipped is None else skipped):
        if text and not text.isspace():
            empty = False
            yield text
    if empty:
        raise UserError(f"data.source={spec.source!r} contains no text; check the corpus")


def identity(spec: DataSpec) -> dict[str, object]:
    """Return, as plain JSON values, everything that determines the documents or tokens of a corpus.

    A file is identified by path, size and modification time, so that a changed corpus is prepared again without reading
    all of it. A TFDS dataset is identified by name and data directory: `tfds:NAME:VERSION` pins its version.
    """
    return module(spec).identity(spec)
