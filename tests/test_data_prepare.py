import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_specs import data_spec, sentences, write_corpus

from smallbatch.data import dataset as datasets
from smallbatch.data.dataset import Dataset, open_dataset
from smallbatch.data.prepare import dataset_dir, lookup, prepare, vocab_size
from smallbatch.data.sources import validation_spec
from smallbatch.errors import UserError

EOD = 255


def is_validation(text: str, frac: float = 0.2) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < frac


def tokens(array: np.ndarray) -> list[int]:
    return array.tolist()


def byte_stream(documents: list[str]) -> list[int]:
    return [EOD] + [token for text in documents for token in [*text.encode(), EOD]]


def prepared(tmp_path: Path, documents: list[str], name: str = "corpus", **changes) -> Dataset:
    spec = data_spec(tmp_path / "cache", source=write_corpus(tmp_path / name, documents), **changes)
    return prepare(spec)


def test_splits_are_documents_between_end_of_document_tokens(tmp_path):
    documents = sentences(80)
    dataset = prepared(tmp_path, documents)
    train = [text for text in documents if not is_validation(text)]
    validation = [text for text in documents if is_validation(text)]
    assert len(validation) > 5
    assert tokens(dataset.train) == byte_stream(train)
    assert tokens(dataset.validation) == byte_stream(validation)
    meta = dataset.meta
    for counts, texts in ((meta.train, train), (meta.validation, validation)):
        size = sum(len(text.encode()) for text in texts)
        assert (counts.documents, counts.bytes, counts.tokens) == (len(texts), size, size + len(texts) + 1)
    # Bits per byte depends on this: targets other than the end of a document are exactly the counted bytes.
    targets = tokens(dataset.validation)[1:]
    assert sum(token != EOD for token in targets) == meta.validation.bytes
    assert (meta.vocab_size, meta.eod_id, meta.dtype) == (256, EOD, "uint16")


def test_split_of_a_document_depends_on_its_text_alone(tmp_path):
    documents = sentences(80)
    other = documents[::2] + documents + sentences(30, seed=9)
    random.Random(0).shuffle(other)
    dataset = prepared(tmp_path, other)

    def parts(array: np.ndarray) -> set[bytes]:
        return set(bytes(tokens(array)).strip(b"\xff").split(b"\xff"))

    assert parts(dataset.train) == {text.encode() for text in other if not is_validation(text)}
    assert parts(dataset.validation) == {text.encode() for text in other if is_validation(text)}
    assert not parts(dataset.train) & parts(dataset.validation)


def test_dropping_the_last_validation_document_changes_no_training_token(tmp_path):
    documents = sentences(80)
    last = max(n for n, text in enumerate(documents) if is_validation(text))
    whole = prepared(tmp_path, documents, "whole")
    fewer = prepared(tmp_path, documents[:last] + documents[last + 1 :], "fewer")
    assert whole.meta.validation_sha256 != fewer.meta.validation_sha256
    assert tokens(fewer.validation) == tokens(whole.validation)[: len(fewer.validation)]
    assert whole.meta.train_sha256 == fewer.meta.train_sha256
    assert tokens(whole.train) == tokens(fewer.train)


def test_validation_set_ends_before_its_limit(tmp_path):
    documents = sentences(80)
    validation = [text for text in documents if is_validation(text)]
    sizes = [len(text.encode()) for text in validation]
    limit = sum(sizes[:3]) + sizes[3] - 1  # one byte short of the fourth; later ones would fit
    dataset = prepared(tmp_path, documents, validation_max_bytes=limit)
    assert tokens(dataset.validation) == byte_stream(validation[:3])
    assert dataset.meta.unused == dataclasses.replace(
        dataset.meta.unused, documents=len(sizes) - 3, bytes=sum(sizes[3:])
    )
    assert tokens(dataset.train) == tokens(prepared(tmp_path, documents).train)
    exact = prepared(tmp_path, documents, validation_max_bytes=limit + 1)
    assert exact.meta.validation.documents == 4


def test_dataset_is_reused_until_the_corpus_changes(tmp_path):
    documents = sentences(40)
    spec = data_spec(tmp_path / "cache", source=write_corpus(tmp_path / "corpus", documents))
    assert lookup(spec) is None
    first = prepare(spec)
    written = first.dir.stat().st_mtime_ns
    found = lookup(spec)
    assert found is not None and found.meta == first.meta == prepare(spec).meta
    assert first.dir.stat().st_mtime_ns == written
    (tmp_path / "corpus" / "99999.txt").write_text("one more document")
    assert lookup(spec) is None
    assert prepare(spec).meta.sha256 != first.meta.sha256


def test_directory_depends_on_the_fields_that_change_tokens(tmp_path):
    text = data_spec(tmp_path, source=write_corpus(tmp_path / "corpus", sentences(3)))
    tfds = data_spec(tmp_path, source="tfds:c4/en")
    (tmp_path / "t.bin").write_bytes(bytes(8))
    flat = data_spec(tmp_path, source=f"tokens:{tmp_path}/t.bin", tokens_vocab_size=10)
    for spec, changes in (
        (text, {"text_key": "x", "document_separator": "x", "tokenizer": "bpe:300"}),
        (text, {"validation_frac": 0.1, "validation_max_bytes": 3}),
        (tfds, {"source": "tfds:c4/de", "split": "test", "text_key": "x", "tfds_data_dir": "x"}),
        (flat, {"tokens_dtype": "uint32", "tokens_vocab_size": 11, "tokens_eod_id": 0}),
    ):
        for name, value in changes.items():
            assert dataset_dir(dataclasses.replace(spec, **{name: value})) != dataset_dir(spec), name
    assert dataset_dir(dataclasses.replace(text, split="x", tfds_data_dir="x")) == dataset_dir(text)
    assert dataset_dir(data_spec(tmp_path)).name.startswith("pystdlib-bytes-")
    assert dataset_dir(tfds).name.startswith("tfds-c4-en-bytes-")


def test_empty_split_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"validation split has no document at .*=0\.0; raise it"):
        prepared(tmp_path, sentences(5), validation_frac=0.0)
    with pytest.raises(UserError, match=r"training split has no document at .*document_separator"):
        prepared(tmp_path, sentences(5), validation_frac=1.0)
    with pytest.raises(UserError, match=r"first document of the validation split is larger .*_max_bytes=3; raise"):
        prepared(tmp_path, sentences(50), validation_max_bytes=3)
    assert not list((tmp_path / "cache").glob("*.partial"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "meta.json").write_text("{"),
        lambda d: (d / "meta.json").write_text("[1]"),
        lambda d: (d / "meta.json").unlink(),
        lambda d: edit_meta(d, "dtype", "rubbish"),
        lambda d: edit_meta(d, "format_version", 99),
        lambda d: edit_meta(d, "train", {"tokens": 1}),
        lambda d: edit_meta(d, "surplus", 1),
        lambda d: (d / "train.bin").unlink(),
        lambda d: os.truncate(d / "train.bin", 10),
        lambda d: (d / "validation.bin").write_bytes(bytes(10**5)),
    ],
)
def test_error_of_a_damaged_dataset_names_the_directory(tmp_path, damage):
    dataset = prepared(tmp_path, sentences(40))
    damage(dataset.dir)
    with pytest.raises(UserError) as error:
        lookup(data_spec(tmp_path / "cache", source=f"text:{tmp_path}/corpus/*.txt"))
    assert f"delete the directory {dataset.dir} and prepare again" in str(error.value)
    assert "\n" not in str(error.value)


def edit_meta(directory: Path, key: str, value) -> None:
    path = directory / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


CHILD = """
import resource
import sys
from smallbatch.data import prepare
from smallbatch.specs import DataSpec
if "no build" in sys.argv:
    prepare._build = None
if "small disk" in sys.argv:  # no file may grow beyond this: like a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
print(prepare.prepare({spec!r}).meta.sha256)
"""


def child(spec, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD.format(spec=spec), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def large_corpus(tmp_path: Path) -> str:
    """Write 16 MB, which take about a second to prepare, so that a test can interrupt it."""
    line = "x" * 1000
    with (tmp_path / "large.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": f"{n} {line}"}) + "\n" for n in range(16_000))
    return f"text:{tmp_path}/large.jsonl"


def wait_until_writing(spec) -> Path:
    partial = dataset_dir(spec).with_name(dataset_dir(spec).name + ".partial")
    shard = partial / "train.bin"
    deadline = time.monotonic() + 60
    while not (shard.exists() and shard.stat().st_size > 0):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return partial


def test_killed_prepare_leaves_no_dataset_and_the_next_one_restarts(tmp_path):
    source = large_corpus(tmp_path)
    spec = data_spec(tmp_path / "cache", source=source, validation_max_bytes=10**7)
    process = child(spec)
    partial = wait_until_writing(spec)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert partial.exists() and not (partial / "meta.json").exists()  # preparation had started
    (partial / "other.bin").write_bytes(b"debris")
    assert lookup(spec) is None
    dataset = prepare(spec)
    assert not partial.exists()
    assert not (dataset.dir / "other.bin").exists()
    never_killed = prepare(dataclasses.replace(spec, cache_dir=str(tmp_path / "other")))
    assert dataset.meta == never_killed.meta
    assert dataset.meta.train.documents + dataset.meta.validation.documents == 16_000


def test_second_process_waits_and_reuses_the_dataset(tmp_path):
    spec = data_spec(tmp_path / "cache", source=large_corpus(tmp_path), validation_max_bytes=10**7)
    first = child(spec)
    wait_until_writing(spec)
    first.send_signal(signal.SIGSTOP)
    second = child(spec, "no build")
    assert second.stderr is not None
    assert "waiting for another process" in second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs[0] == outputs[1] != ""


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    spec = data_spec(tmp_path / "cache", source=large_corpus(tmp_path))
    process = child(spec, "small disk")
    message = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 1
    assert f"UserError: cannot write the dataset {dataset_dir(spec)}: File too large; free space" in message
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_uncreatable_cache_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    source = write_corpus(tmp_path / "corpus", sentences(20))
    with pytest.raises(UserError, match=r"cannot write the dataset .*Not a directory.*data\.cache_dir"):
        prepare(data_spec(tmp_path / "file" / "cache", source=source))


def token_file(tmp_path: Path, ids, dtype: str = "<u2", **changes):
    np.asarray(ids, dtype=dtype).tofile(tmp_path / "tokens.bin")
    changes = {"tokens_vocab_size": 1000, "tokens_dtype": {"<u2": "uint16", "<u4": "uint32"}[dtype]} | changes
    return data_spec(tmp_path / "cache", source=f"tokens:{tmp_path}/tokens.bin", **changes)


def test_validation_set_of_tokens_is_their_end(tmp_path):
    ids = np.random.default_rng(0).integers(0, 1000, 5000)
    dataset = prepare(token_file(tmp_path, ids, validation_max_bytes=600))
    assert tokens(dataset.train) == ids[:4000].tolist()
    assert tokens(dataset.validation) == ids[4000:4300].tolist()  # 600 bytes of uint16
    meta = dataset.meta
    assert (meta.train.tokens, meta.validation.tokens, meta.unused.tokens) == (4000, 300, 700)
    assert (meta.train.bytes, meta.train.documents, meta.eod_id) == (None, None, None)
    assert (meta.vocab_size, meta.tokenizer) == (1000, "none")


@pytest.mark.parametrize("ends_with_eod", [True, False])
def test_token_documents_are_split_by_a_hash(tmp_path, monkeypatch, ends_with_eod):
    from smallbatch.data import validation_split as module

    monkeypatch.setattr(module, "BLOCK_TOKENS", 64)  # documents straddle the blocks that are read
    chance = np.random.default_rng(1)
    documents = [chance.integers(1, 1000, chance.integers(0, 60)).tolist() for _ in range(100)]
    ids = [token for document in documents for token in [*document, 0]]
    spec = token_file(tmp_path, ids if ends_with_eod else ids[:-1], tokens_eod_id=0)
    dataset = prepare(spec)

    def in_validation(document):
        digest = hashlib.blake2b(np.array(document, "<u4").tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64 < 0.2

    for array, side in ((dataset.train, False), (dataset.validation, True)):
        kept = [document for document in documents if document and in_validation(document) is side]
        assert kept
        assert tokens(array) == [0] + [token for document in kept for token in [*document, 0]]
    (tmp_path / "wide").mkdir()
    wide = prepare(token_file(tmp_path / "wide", ids, "<u4", tokens_eod_id=0, validation_max_bytes=20_000))
    assert wide.meta.sha256 == dataset.meta.sha256  # the type in which ids were stored does not matter


def test_large_vocabularies_are_stored_as_uint32(tmp_path):
    ids = np.array([0, 70_000, 5, 99_999, 1] * 20)
    dataset = prepare(token_file(tmp_path, ids, "<u4", tokens_vocab_size=100_000))
    assert dataset.meta.dtype == "uint32"
    assert tokens(dataset.train) == ids[:80].tolist()


def test_bad_token_files_are_errors(tmp_path):
    ids = np.full(5000, 7)
    with pytest.raises(UserError, match=r"data\.tokens_vocab_size is unset"):
        prepare(token_file(tmp_path, ids, tokens_vocab_size=None))
    ids[4321] = 1000
    with pytest.raises(UserError, match=r"token 4321 is 1000, not below data.tokens_vocab_size=1000"):
        prepare(token_file(tmp_path, ids))
    with pytest.raises(UserError, match=r"tokens_eod_id=1000 is not in \[0, "):
        vocab_size(token_file(tmp_path, ids, tokens_eod_id=1000))
    spec = token_file(tmp_path, ids)
    (tmp_path / "tokens.bin").write_bytes(bytes(101))
    with pytest.raises(UserError, match="101 bytes, which is not a whole number of uint16 tokens"):
        prepare(spec)
    (tmp_path / "tokens.bin").write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        prepare(spec)
    with (tmp_path / "tokens.bin").open("wb") as file:
        np.save(file, ids.astype("<u2"))
    with pytest.raises(UserError, match=r"is a \.npy file"):
        prepare(spec)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(UserError, match=r"no file matches .*tokens.bin"):
        prepare(spec)
    with pytest.raises(UserError, match="bpe:300' cannot be trained"):
        prepare(token_file(tmp_path, np.full(5000, 7), tokenizer="bpe:300"))


def llm_c_file(path: Path, ids, dtype: str = "<u2", magic: int = 20240520, version: int = 1, count=None) -> None:
    """Write a file as dev/data/data_common.py of llm.c does: 256 int32, then the tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype=dtype).tobytes())


def test_token_files_are_concatenated_in_path_order(tmp_path, monkeypatch):
    from smallbatch.data import validation_split as module

    monkeypatch.setattr(module, "BLOCK_TOKENS", 64)  # blocks straddle the files
    ids = np.random.default_rng(0).integers(0, 100, 1000)
    for name, part in (("b_000002", ids[400:]), ("b_000001", ids[300:400]), ("a_000001", ids[:300])):
        part.astype("<u2").tofile(tmp_path / f"{name}.bin")
        llm_c_file(tmp_path / f"{name}.llmc", part)
    (tmp_path / "whole.dat").write_bytes(ids.astype("<u2").tobytes())
    for ending in ("bin", "llmc"):
        spec = data_spec(tmp_path / "cache", source=f"tokens:{tmp_path}/*.{ending}", tokens_vocab_size=100)
        dataset = prepare(spec)
        assert tokens(dataset.train) + tokens(dataset.validation) == ids.tolist()
        by_document = dataclasses.replace(spec, tokens_eod_id=0)
        whole = dataclasses.replace(by_document, source=f"tokens:{tmp_path}/whole.dat")
        assert prepare(by_document).meta.sha256 == prepare(whole).meta.sha256
    (tmp_path / "c.bin").write_bytes(bytes(8))
    assert lookup(dataclasses.replace(spec, source=f"tokens:{tmp_path}/*.bin")) is None  # one more is another corpus


def test_llama_3_file_of_llm_c_has_uint32_tokens(tmp_path):
    llm_c_file(tmp_path / "t.bin", np.arange(70_000, 70_100), "<u4", 20240801, 7)
    spec = data_spec(tmp_path / "c", source=f"tokens:{tmp_path}/t.bin", tokens_vocab_size=80_000, tokens_dtype="uint32")
    assert tokens(prepare(spec).train) == list(range(70_000, 70_080))
    with pytest.raises(UserError, match=r"t\.bin has uint32 tokens.*set data\.tokens_dtype=uint32"):
        prepare(dataclasses.replace(spec, tokens_dtype="uint16", tokens_vocab_size=1000))


def test_errors_name_inconsistent_token_files(tmp_path):
    spec = data_spec(tmp_path / "cache", source=f"tokens:{tmp_path}/*.bin", tokens_vocab_size=1000)
    with pytest.raises(UserError, match=r"no file matches '.*/\*\.bin'"):
        prepare(spec)
    llm_c_file(tmp_path / "a.bin", np.arange(500), count=501)
    with pytest.raises(UserError, match=r"a\.bin has 2024 bytes, but with the 501 uint16 tokens"):
        prepare(spec)
    llm_c_file(tmp_path / "a.bin", np.arange(500), version=2)
    with pytest.raises(UserError, match=r"a\.bin has an llm\.c header of version 2, .*version 1"):
        prepare(spec)
    llm_c_file(tmp_path / "a.bin", np.arange(500))
    np.arange(500, dtype="<u2").tofile(tmp_path / "b.bin")
    with pytest.raises(UserError, match=r"a\.bin has the header of llm\.c, but .*b\.bin has none"):
        prepare(spec)


def test_validation_set_of_one_token_is_an_error(tmp_path):
    (tmp_path / "z.bin").write_bytes(bytes(6000))
    spec = data_spec(tmp_path / "c", source=f"tokens:{tmp_path}/z.bin", tokens_vocab_size=256, validation_max_bytes=2)
    with pytest.raises(UserError, match=r"validation set has 1 token.*data\.validation_max_bytes=2"):
        prepare(spec)


def test_validation_source_is_the_validation_set(tmp_path, capsys):
    documents, other = sentences(40), sentences(50, seed=5)[40:]
    validation_source = write_corpus(tmp_path / "other", [*other, documents[3], documents[3]])
    dataset = prepared(tmp_path, documents, validation_source=validation_source)
    assert tokens(dataset.train) == byte_stream(documents)
    assert tokens(dataset.validation) == byte_stream([*other, documents[3], documents[3]])
    meta = dataset.meta
    assert (meta.train.documents, meta.validation.documents, meta.unused.documents) == (40, 12, 0)
    assert "1 training documents are also in the validation set" in "".join(capsys.readouterr())
    assert prepared(tmp_path, documents).meta.train_sha256 != meta.train_sha256
    limited = prepared(tmp_path, documents, validation_source=validation_source, validation_max_bytes=500)
    assert tokens(limited.validation) == tokens(dataset.validation)[: len(limited.validation)]
    assert limited.dir != dataset.dir
    assert "raise data.validation_max_bytes=500 to use all of it" in "".join(capsys.readouterr())
    (tmp_path / "other" / "99999.txt").write_text("one more document")
    spec = data_spec(tmp_path / "cache", source=f"text:{tmp_path}/corpus/*.txt", validation_source=validation_source)
    assert lookup(spec) is None


def test_validation_source_can_be_a_token_file(tmp_path):
    ids = np.random.default_rng(0).integers(0, 1000, 900)
    (tmp_path / "val.bin").write_bytes(ids[:200].astype("<u2").tobytes())
    dataset = prepare(token_file(tmp_path, ids, validation_source=f"tokens:{tmp_path}/val.bin"))
    assert (tokens(dataset.train), tokens(dataset.validation)) == (ids.tolist(), ids[:200].tolist())


@pytest.mark.parametrize("source, given", [
    ("tokens:t.bin", "text:*.txt"), ("text:*.txt", "tokens:t.bin"), ("text:*.txt", "split:validation"),
    ("tfds:x", "split:train"), ("text:*.txt", "pystdlib"), ("text:*.txt", "text:"),
])  # fmt: skip
def test_validation_source_must_fit_the_source(tmp_path, source, given):
    with pytest.raises(UserError, match="validation_source"):
        validation_spec(data_spec(tmp_path, source=source, validation_source=given))


def test_validation_source_can_be_a_tfds_split(tmp_path):
    given = validation_spec(data_spec(tmp_path, source="tfds:c4/en", validation_source="split:validation"))
    assert given is not None and (given.source, given.split, given.validation_frac) == ("tfds:c4/en", "validation", 1.0)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_error_names_the_file_of_changed_tokens(tmp_path, split):
    dataset = prepared(tmp_path, sentences(40))
    shard = dataset.dir / f"{split}.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError) as error:
        open_dataset(dataset.dir)
    assert f"the tokens in {split}.bin have changed" in str(error.value)
    assert f"delete the directory {dataset.dir} and prepare again" in str(error.value)


def test_validation_tokens_are_always_verified(tmp_path):
    dataset = prepared(tmp_path, sentences(40))
    shard = dataset.dir / "validation.bin"
    status = shard.stat()
    with shard.open("r+b") as file:
        file.write(b"\x07")
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"the tokens in validation\.bin have changed"):
        open_dataset(dataset.dir)


def test_training_tokens_are_hashed_once_per_change(tmp_path, monkeypatch):
    dataset = prepared(tmp_path, sentences(40))
    hashed = []
    verify = datasets._verify_digest
    monkeypatch.setattr(datasets, "_verify_digest", lambda path, sha: (hashed.append(path.stem), verify(path, sha)))
    open_dataset(dataset.dir)
    assert hashed == ["validation"]  # `prepare` hashed the training tokens when it wrote them
    os.utime(dataset.dir / "train.bin")
    open_dataset(dataset.dir)
    open_dataset(dataset.dir)
    assert hashed == ["validation", "validation", "train", "validation"]
    for rubbish in (b"{", b"[1]", b"[" * 100_000):
        (dataset.dir / "verified.json").write_bytes(rubbish)
        open_dataset(dataset.dir)
    assert hashed.count("train") == 4


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "smallbatch.prepare", *arguments], capture_output=True, text=True)


def test_command_prints_the_directory_and_one_line_errors(tmp_path):
    source = write_corpus(tmp_path / "corpus", sentences(200))
    flags = [f"--config.data.source={source}", f"--config.data.cache_dir={tmp_path}/cache"]
    done = command(*flags)
    assert (done.returncode, done.stderr) == (0, "")
    (directory,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert str(directory) in done.stdout.splitlines()[0]
    failed = command(*flags, "--config.data.source=text:nothing/*.txt")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.splitlines() == [failed.stderr.strip()]
    assert failed.stderr.startswith("error: no file matches 'nothing/*.txt'")


def test_importing_prepare_imports_no_heavy_library():
    heavy = {"jax", "grain", "tensorflow_datasets", "tensorflow", "pyarrow", "tokenizers"}
    code = f"import sys, smallbatch.prepare, smallbatch.data.stream; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
