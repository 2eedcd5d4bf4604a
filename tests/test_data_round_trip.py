"""Text that a tokenizer loses: an error above 1%, otherwise a warning and no bits per byte."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from data_specs import data_spec, sentences, write_corpus

from smallbatch.data import round_trip
from smallbatch.data.prepare import prepare
from smallbatch.data.round_trip import lost_bytes
from smallbatch.data.tokenizers import train_bpe
from smallbatch.errors import UserError

ASCII = [chr(code) for code in range(1, 127)]
RUSSIAN = "Друг мой, любовь - большая книга, и буквы её чужды тому, кто не знал печали. "


def tokenizer_file(path: Path, characters=(), normalizer=None, pre_tokenizer=None, decoder=None, unk="<unk>") -> str:
    """Write a tokenizer.json with one token for each character and return its data.tokenizer."""
    from tokenizers import Tokenizer, decoders, models

    names = ["</s>", *([unk] if unk else []), *dict.fromkeys([*characters, *ASCII])]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token=unk))
    backend.decoder = decoder or decoders.Fuse()
    if normalizer:
        backend.normalizer = normalizer
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    backend.save(str(path))
    return f"file:{path}"


def prepared(tmp_path: Path, documents: list[str], tokenizer: str):
    source = write_corpus(tmp_path / "corpus", documents)
    return prepare(data_spec(tmp_path / "cache", source=source, tokenizer=tokenizer))


def russian(count: int = 60) -> list[str]:
    return [f"{n}: {RUSSIAN}" for n in range(count)]


@pytest.mark.parametrize("unk", ["<unk>", None])
def test_tokenizer_without_the_letters_of_the_corpus_is_an_error(tmp_path, unk):
    tokenizer = tokenizer_file(tmp_path / "ascii.json", unk=unk)
    with pytest.raises(UserError) as error:
        prepared(tmp_path, russian(), tokenizer)
    message = str(error.value)
    assert f"data.tokenizer={tokenizer} loses 8" in message and "% of the text" in message
    assert "'0: Друг мой" in message  # an example
    assert "at most 1% may be lost. Use a tokenizer that covers this text, such as data.tokenizer=bytes" in message
    assert "\n" not in message
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def lossy_normalizers():
    from tokenizers import Regex, normalizers

    letters = sorted(set(RUSSIAN + RUSSIAN.lower()))
    return [
        (normalizers.Lowercase(), letters, [text.upper() for text in russian()]),
        (normalizers.Replace(Regex(r"\s+"), " "), letters, [t + "\n\n  " for t in russian()]),
        (normalizers.NFKC(), [], [f"{n} ﬁve ﬁne ofﬁces" for n in range(60)]),
        (normalizers.NFC(), ["é"], [f"{n} cafe\u0301" for n in range(60)]),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), [], ["é à ï"] * 9 + ["é"]),
    ]


@pytest.mark.parametrize("case", range(5))
def test_normalizer_that_changes_the_text_is_an_error(tmp_path, case):
    normalizer, letters, documents = lossy_normalizers()[case]
    tokenizer = tokenizer_file(tmp_path / "t.json", letters, normalizer)
    with pytest.raises(UserError, match=r"of the text .*do not survive encode and decode"):
        prepared(tmp_path, [*documents, *(f"{n} " + documents[0] for n in range(30))], tokenizer)


def test_small_loss_is_a_warning_and_is_recorded(tmp_path, capsys):
    documents = [f"{n}: plain ASCII text of some length, again and again and again" for n in range(100)]
    documents[7] += " 🙂"
    size = sum(len(text.encode()) for text in documents)
    for _ in ("prepared", "reused"):
        dataset = prepared(tmp_path, documents, tokenizer_file(tmp_path / "ascii.json"))
        unused = dataset.meta.unused.bytes or 0
        assert f"({4:,} of {size - unused:,} bytes do not survive" in (printed := capsys.readouterr().err)
        assert "warning: " in printed and "bits_per_byte is not reported" in printed
    assert dataset.meta.text_lost_frac == pytest.approx(4 / (size - unused))
    assert json.loads((dataset.dir / "meta.json").read_text())["text_lost_frac"] == dataset.meta.text_lost_frac
    for tokenizer in ("bytes", "bpe:300"):
        lossless = prepared(tmp_path, documents, tokenizer)
        assert (lossless.meta.text_lost_frac, lossless.meta.notes) == (0, [])
    assert capsys.readouterr().err == ""


def test_bits_per_byte_is_null_if_text_was_lost(tmp_path, monkeypatch):
    from smallbatch.training import validation

    class Program:
        def evaluation_params(self, hyperparams, state): ...
        def averaged_params(self, hyperparams, state): ...

    monkeypatch.setattr(validation, "_nats", lambda *_: (np.array([60.0, 40.0]), np.array([30, 20])))
    documents = [f"{n}: plain ASCII text of some length, again and again and again" for n in range(100)]
    tokenizer = tokenizer_file(tmp_path / "ascii.json")
    whole = validation.validate(Program(), None, None, None, prepared(tmp_path, documents, tokenizer))  # pyright: ignore
    assert whole.bits_per_byte is not None
    documents[7] += " 🙂"
    lossy = validation.validate(Program(), None, None, None, prepared(tmp_path, documents, tokenizer))  # pyright: ignore
    assert lossy.bits_per_byte is None and lossy.loss_nats > 0


def test_one_space_at_the_start_of_a_document_is_ignored(tmp_path):
    from tokenizers import decoders, normalizers, pre_tokenizers

    documents = [f"{' ' * (n % 3)}{n} plain ASCII\n  text " for n in range(60)]
    metaspace = tokenizer_file(
        tmp_path / "a.json",
        ["▁"],
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoder=decoders.Metaspace(prepend_scheme="always"),
    )
    llama = tokenizer_file(
        tmp_path / "b.json",
        ["▁"],
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    )
    unstripped = tokenizer_file(
        tmp_path / "c.json",
        ["▁"],
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
    )
    for tokenizer in (metaspace, llama, unstripped):
        assert prepared(tmp_path, documents, tokenizer).meta.text_lost_frac == 0, tokenizer


@pytest.mark.parametrize(
    ("text", "decoded", "lost"),
    [
        ("same", "same", 0),
        (" a", "a", 0),
        ("a", " a", 0),
        ("  a", "a", 2),  # two spaces: not the one of sentencepiece
        ("ABc", "abc", 2),
        ("a\n\nb", "a b", 2),
        ("привет", "", 12),
        ("привет мир", "<unk> <unk>", 18),
        ("a,b", "a , b", 2),  # nothing is missing, and yet "a , b" has the same tokens
        ("ab", "ba", 2),
        ("a", "", 1),
    ],
)
def test_lost_bytes_are_the_bytes_missing_after_decoding(text, decoded, lost):
    assert lost_bytes(text, decoded) == lost


def test_error_of_a_large_corpus_is_early_and_per_corpus(monkeypatch):
    class Dropping:
        lossless = False

        def decode_batch(self, batch):
            return ["x" * len(ids) for ids in batch]

    monkeypatch.setattr(round_trip, "ENOUGH_BYTES", 1000)
    check = round_trip.LossCheck(Dropping(), "file:t.json", together=False)  # pyright: ignore[reportArgumentType]
    ids = [np.zeros(100)] * 16
    check.add("train", ["x" * 100] * 16, ids)
    check.add("validation", ["y" * 100], ids[:1])
    with pytest.raises(UserError, match=r"loses 1e\+02% of the text of the validation set \(1,600 of 1,600 bytes"):
        check.add("validation", ["y" * 100] * 15, ids[1:])


def test_trained_bpe_is_lossless():
    bpe = train_bpe(sentences(100), 300)
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
    texts = [every_character, unicodedata.normalize("NFD", RUSSIAN), "  \r\n\t ", "<|endoftext|>"]
    assert bpe.lossless
    assert bpe.decode_batch(bpe.encode_batch(texts)) == texts
