import dataclasses
import json

import numpy as np
import pytest
from data_specs import data_spec, sentences, write_corpus

from smallbatch.data import tokenizers
from smallbatch.data.prepare import prepare, vocab_size
from smallbatch.data.tokenizers import BPE_EOD_TOKEN, BytesTokenizer, from_file, split_tokenizer, train_bpe
from smallbatch.data.validation_split import is_validation
from smallbatch.errors import UserError

TEXTS = ["def f(x):\n\treturn x\r\n", "naïve café 学习 🙂 \x00", "", "   spaces  ", "a<|endoftext|>b"]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(sentences(300), 400)


def test_bytes_are_utf8_without_the_end_of_document_id():
    tokenizer = BytesTokenizer()
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (256, 255)
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    (ids,) = tokenizer.encode_batch([every_character])
    assert ids.tobytes() == every_character.encode("utf-8")
    assert 255 not in ids


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_decoding_restores_the_text(kind, bpe):
    tokenizer = BytesTokenizer() if kind == "bytes" else bpe
    ids = tokenizer.encode_batch(TEXTS)
    assert [tokenizer.decode(i) for i in ids] == TEXTS
    assert all(tokenizer.eod_id not in i for i in ids)  # not even where the text spells it
    assert all(i.max(initial=0) < tokenizer.vocab_size for i in ids)


def test_any_ids_can_be_decoded(bpe):
    assert BytesTokenizer().decode([104, 105, 255, 0xC3]) == "hi��"
    assert bpe.decode(np.array([bpe.eod_id])) == BPE_EOD_TOKEN
    assert isinstance(bpe.decode(range(bpe.vocab_size)), str)


def test_bpe_has_the_requested_vocabulary_and_is_reproducible(bpe, tmp_path):
    assert bpe.vocab_size == 400
    saved = []
    for name, tokenizer in (("a", bpe), ("b", train_bpe(iter(sentences(300)), 400))):
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
        saved.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert saved[0] == saved[1]
    (ids,) = bpe.encode_batch(["batch step token loss"])
    assert len(ids) < len("batch step token loss")


def test_bpe_error_of_a_small_corpus_suggests_a_vocabulary():
    with pytest.raises(UserError, match=r"too small for a vocabulary of 5000.*bpe:(\d+)") as error:
        train_bpe(["to be or not to be"], 5000)
    size = int(str(error.value).split("bpe:")[1].split()[0])
    assert train_bpe(["to be or not to be"], size).vocab_size == size


def test_bpe_is_trained_on_no_validation_document(tmp_path):
    """A frequent word of the validation documents is not merged into one token."""
    documents = sentences(200)
    marked = [text + " zyxwvut" * 50 if is_validation(text.encode(), 0.2) else text for text in documents]
    # The mark changes the hash: keep the validation documents that remain in their split.
    corpus = [new for old, new in zip(documents, marked, strict=True) if new == old or is_validation(new.encode(), 0.2)]
    validation_texts = [text for text in corpus if "zyxwvut" in text]
    assert validation_texts
    source = write_corpus(tmp_path / "corpus", corpus)
    dataset = prepare(data_spec(tmp_path, source=source, tokenizer="bpe:400", validation_max_bytes=10**6))
    assert dataset.meta.validation.documents == len(validation_texts)
    tokenizer = tokenizers.load(dataset.dir)
    assert tokenizer is not None
    (ids,) = tokenizer.encode_batch([" zyxwvut"])
    assert len(ids) >= 7
    (ids,) = train_bpe(corpus, 400).encode_batch([" zyxwvut"])  # merged if the validation documents are included
    assert len(ids) <= 2


def test_saved_tokenizer_equals_loaded_tokenizer(bpe, tmp_path):
    for name, tokenizer in (("bytes", BytesTokenizer()), ("bpe", bpe)):
        directory = tmp_path / name
        directory.mkdir()
        tokenizer.save(directory)
        loaded = tokenizers.load(directory)
        assert loaded is not None
        assert (type(loaded), loaded.vocab_size, loaded.eod_id) == (
            type(tokenizer),
            tokenizer.vocab_size,
            tokenizer.eod_id,
        )
        for a, b in zip(loaded.encode_batch(TEXTS), tokenizer.encode_batch(TEXTS), strict=True):
            np.testing.assert_array_equal(a, b)
    assert tokenizers.load(tmp_path) is None


def test_damaged_saved_tokenizer_is_one_line(bpe, tmp_path):
    bpe.save(tmp_path)
    for rubbish in ("{", "[]", '{"kind": "json"}', '{"kind": "other"}'):
        (tmp_path / "tokenizer_config.json").write_text(rubbish)
        with pytest.raises(UserError, match=r"tokenizer_config\.json") as error:
            tokenizers.load(tmp_path)
        assert "\n" not in str(error.value)


def test_ids_of_a_long_document_do_not_depend_on_its_parts(monkeypatch):
    text = "\n".join(sentences(2000)) + "\n\n  indented\n\n" + " ".join(sentences(500)) + "\r\nlast\n"
    whole = train_bpe([text], 400)
    (ids,) = whole.encode_batch([text])
    monkeypatch.setattr(tokenizers, "PART_CHARACTERS", 1000)
    assert "".join(tokenizers.parts_of(text)) == text
    assert len(list(tokenizers.parts_of(text))) > 50
    in_parts = train_bpe([text], 400)
    np.testing.assert_array_equal(in_parts.encode_batch(["short", text, ""])[1], ids)
    assert in_parts.decode_batch(in_parts.encode_batch([text])) == [text]


def foreign_tokenizer(path, *special: str, truncation: int | None = None, post_processor: bool = False):
    """Write a tokenizer.json like other programs, with special tokens, truncation and a first token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2, "long": 9}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special))
    if truncation:
        backend.enable_truncation(truncation)
        backend.enable_padding(length=5)
    if post_processor:
        bos = (special[0], backend.token_to_id(special[0]))
        backend.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[bos])
    backend.save(str(path))
    return path


def test_tokenizer_file_adds_no_special_tokens(tmp_path):
    path = foreign_tokenizer(tmp_path / "t.json", "</s>", truncation=2, post_processor=True)
    tokenizer = from_file(path, None)
    assert [i.tolist() for i in tokenizer.encode_batch(["hello world hello long"])] == [[1, 2, 1, 9]]
    assert tokenizer.vocab_size == 10  # ids 0, 1, 2, 9 and </s> = 4
    assert tokenizer.eod_id == 4


def test_end_of_document_token_is_found_or_set(tmp_path):
    assert from_file(foreign_tokenizer(tmp_path / "a.json", "<eos>"), None).eod_id == 4
    path = foreign_tokenizer(tmp_path / "b.json", "[DONE]")
    with pytest.raises(UserError, match=r"no end-of-document token .*data\.eod_token"):
        from_file(path, None)
    with pytest.raises(UserError, match="no end-of-document token <eos>"):
        from_file(path, "<eos>")
    tokenizer = from_file(path, "[DONE]")
    tokenizer.save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded is not None and loaded.eod_id == tokenizer.eod_id == 4


def test_invalid_tokenizer_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*none.json: No such file"):
        from_file(tmp_path / "none.json", None)
    (tmp_path / "x.json").write_text(json.dumps({"model": "none"}))
    with pytest.raises(UserError, match=r"x.json is not a tokenizer.json") as error:
        from_file(tmp_path / "x.json", None)
    (tmp_path / "y.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"y.json is not a tokenizer.json"):
        from_file(tmp_path / "y.json", None)
    assert "\n" not in str(error.value)


def test_tokenizer_file_is_saved_with_a_token_corpus(tmp_path):
    path = foreign_tokenizer(tmp_path / "t.json", "</s>")
    np.tile(np.array([1, 2, 9], "<u2"), 100).tofile(tmp_path / "t.bin")
    spec = data_spec(tmp_path, source=f"tokens:{tmp_path}/t.bin", tokens_vocab_size=10)
    assert tokenizers.load(prepare(spec).dir) is None
    tokenizer = tokenizers.load(prepare(dataclasses.replace(spec, tokenizer=f"file:{path}")).dir)
    assert tokenizer is not None and tokenizer.decode([1, 2, 9]) == "hello world long"
    with pytest.raises(UserError, match=r"t.json has 10 ids, more than data.tokens_vocab_size=9;"):
        np.full(300, 1, "<u2").tofile(tmp_path / "t.bin")
        prepare(dataclasses.replace(spec, tokenizer=f"file:{path}", tokens_vocab_size=9))


def test_vocabulary_size_needs_no_preparation(tmp_path):
    path = foreign_tokenizer(tmp_path / "t.json", "</s>")
    assert vocab_size(data_spec(tmp_path)) == 256
    assert vocab_size(data_spec(tmp_path, tokenizer="bpe:8192")) == 8192
    assert vocab_size(data_spec(tmp_path, tokenizer=f"file:{path}")) == 10
    assert vocab_size(data_spec(tmp_path, source="tokens:none.bin", tokens_vocab_size=50257)) == 50257
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("tokenizer", ["byte", "bytes:", "bpe", "bpe:", "bpe:x", "bpe:257", "bpe:-5", "file:"])
def test_error_of_a_malformed_tokenizer_lists_the_allowed_forms(tokenizer):
    with pytest.raises(UserError, match=r"bytes, bpe:N .*file:PATH"):
        split_tokenizer(tokenizer)
