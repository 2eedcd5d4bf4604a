"""Corpora of one or a few documents: the end of the text is the validation set."""

import dataclasses

import pytest
from data_specs import data_spec, sentences, write_corpus

from smallbatch.data.dataset import Dataset
from smallbatch.data.prepare import prepare
from smallbatch.data.validation_split import TAIL_RULE, cut_at


def parts(dataset: Dataset) -> tuple[bytes, bytes]:
    """Return the bytes of both splits without the end-of-document tokens around them."""
    train, validation = (bytes(a.tolist()) for a in (dataset.train, dataset.validation))
    return train[1:-1], validation[1:-1]


def test_validation_set_of_one_document_is_its_end(tmp_path, capsys):
    book = "".join(f"Scene {n}. The curtain rises on act {n // 9}, and a voice speaks.\n" for n in range(4000)).encode()
    source = write_corpus(tmp_path / "corpus", [book.decode()])
    spec = data_spec(tmp_path / "cache", source=source, validation_frac=0.05, validation_max_bytes=524_288)
    for _ in ("prepared", "reused"):
        dataset = prepare(spec)
        printed = capsys.readouterr().err
        assert "the corpus is one document: the last 5.00% of its text is the validation set" in printed
    train, validation = parts(dataset)
    assert train + validation == book
    assert train.endswith(b"\n")
    assert 0.05 * len(book) <= len(validation) < 0.05 * len(book) + 200
    assert dataset.meta.split_rule == TAIL_RULE
    assert (dataset.meta.train.documents, dataset.meta.validation.documents, dataset.meta.unused.bytes) == (1, 1, 0)


def test_bpe_is_trained_on_the_training_part_of_a_document(tmp_path):
    text = "a b c d\n" * 2000 + "zyxwvut " * 400
    source = write_corpus(tmp_path / "corpus", [text])
    dataset = prepare(data_spec(tmp_path, source=source, tokenizer="bpe:259", validation_max_bytes=10**6))
    assert "zyxwvut" not in (dataset.dir / "tokenizer.json").read_text()
    with pytest.raises(Exception, match="too small for a vocabulary of 300"):
        prepare(data_spec(tmp_path, source=source, tokenizer="bpe:300", validation_max_bytes=10**6))


@pytest.mark.parametrize("documents", [1, 2, 4])
def test_few_documents_in_one_split_are_divided_at_the_tail(tmp_path, documents):
    """The hash assigns the documents to one split for some of the seeds, and to both for others."""
    notes = set()
    for seed in range(10):
        texts = sentences(documents, seed)
        for frac in (0.1, 0.9):
            corpus = write_corpus(tmp_path / f"{seed}", texts)
            dataset = prepare(data_spec(tmp_path / "cache", source=corpus, validation_frac=frac))
            train, validation = (part.replace(b"\xff", b"").decode() for part in parts(dataset))
            assert train and validation
            assert sorted(train + validation) == sorted("".join(texts))
            if dataset.meta.split_rule == TAIL_RULE:
                assert train + validation == "".join(texts)
                size = len("".join(texts).encode())
                assert 0 <= len(validation.encode()) - int(frac * size) < 4  # at most a character more
            notes |= {dataset.meta.split_rule}
        if documents == 1:
            assert notes == {TAIL_RULE}
    assert TAIL_RULE in notes


def test_tail_does_not_depend_on_the_tokenizer(tmp_path):
    text = "".join(f"line {n} café\r\n" for n in range(3000))
    spec = data_spec(tmp_path / "cache", source=write_corpus(tmp_path / "corpus", [text]), validation_max_bytes=1000)
    dataset = prepare(spec)
    train, validation = parts(dataset)
    assert text.encode().startswith(train + validation)
    assert train.endswith(b"\r\n") and validation.endswith(b"\r\n")
    assert 900 < len(validation) <= 1000
    meta = dataset.meta
    assert (meta.unused.documents, meta.unused.bytes) == (1, len(text.encode()) - len(train) - len(validation))
    bpe = prepare(dataclasses.replace(spec, tokenizer="bpe:258")).meta
    assert (bpe.train.bytes, bpe.validation.bytes) == (meta.train.bytes, meta.validation.bytes)


def test_cut_is_between_characters_and_at_a_line_end_if_possible():
    for limit in range(20):
        head, rest = cut_at("é🙂学é", limit)
        assert head + rest == "é🙂学é" and min(limit, 11) - 4 < len(head.encode()) <= limit
    assert cut_at("one\ntwo three", 9) == ("one\n", "two three")
    assert cut_at("one\r\ntwo", 4) == ("one", "\r\ntwo")
    assert cut_at("one\r\ntwo", 6) == ("one\r\n", "two")
    assert cut_at("a\n" + "x" * 5000, 3000) == ("a\n" + "x" * 2998, "x" * 2002)  # the line end is too far away
    assert cut_at("short", 5) == ("short", "")
    assert cut_at("short", 0) == ("", "short")
