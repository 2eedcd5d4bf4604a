import json
import sysconfig
import tokenize
from pathlib import Path

import pytest
from data_specs import data_spec, sentences, write_corpus

from smallbatch.data import sources
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError


def read(tmp_path: Path, source: str, **changes) -> list[str]:
    return list(sources.documents(data_spec(tmp_path / "cache", source=source, **changes)))


def refusal(tmp_path: Path, source: str, **changes) -> str:
    with pytest.raises(UserError) as error:
        read(tmp_path, source, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_text_files_are_read_unchanged_in_path_order(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "1.txt").write_bytes("deep 🙂\r\n".encode())
    (tmp_path / "a.txt").write_bytes(b" first\n")
    (tmp_path / "c.jsonl").write_text('{"text": "line \\u00e9"}\n\n{"text": "last", "other": 1}')
    (tmp_path / "blank.txt").write_bytes(b" \n\t")
    (tmp_path / "empty.txt").write_bytes(b"")
    assert read(tmp_path, f"text:{tmp_path}/**/*.*") == [" first\n", "deep 🙂\r\n", "line é", "last"]
    assert read(tmp_path, f"text:{tmp_path}/*.txt") == [" first\n"]


def test_file_name_that_looks_like_a_pattern_is_read(tmp_path):
    (tmp_path / "a[1].txt").write_text("brackets")
    assert read(tmp_path, f"text:{tmp_path}/a[1].txt") == ["brackets"]


def test_parquet_rows_are_documents(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    texts = sentences(600)
    for name, kind in (
        ("a", pa.string()),
        ("b", pa.large_string()),
        ("c", pa.string_view()),
        ("d", pa.dictionary(pa.int32(), pa.string())),
        ("e", pa.dictionary(pa.int16(), pa.large_string())),
    ):
        table = pa.table({"content": pa.array(texts).cast(kind), "n": list(range(600))})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=100)
        assert read(tmp_path, f"text:{tmp_path}/{name}.parquet", text_key="content") == texts
    missing = refusal(tmp_path, f"text:{tmp_path}/*.parquet")
    assert "column 'text' does not exist; set data.text_key to one of: content" in missing
    number = refusal(tmp_path, f"text:{tmp_path}/d.parquet", text_key="n")
    assert "column 'n' is int64, not text; set data.text_key to one of: content" in number
    parquet.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    assert "add a text column" in refusal(tmp_path, f"text:{tmp_path}/n.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"rubbish " * 100)
    assert "bad.parquet" in refusal(tmp_path, f"text:{tmp_path}/bad.parquet")


def test_errors_name_the_file_and_the_line_or_byte(tmp_path):
    def message(name: str, content: bytes, **changes) -> str:
        (tmp_path / name).write_bytes(content)
        return refusal(tmp_path, f"text:{tmp_path}/{name}", **changes)

    assert "no file matches" in refusal(tmp_path, f"text:{tmp_path}/none*.txt")
    assert "a.md is not a .txt, .jsonl or .parquet file" in message("a.md", b"x")
    assert "a.txt is not UTF-8 at byte 4" in message("a.txt", b"good\xff")
    separated = message("b.txt", b"good||bad \xc3(", document_separator="||")
    assert "b.txt is not UTF-8 at byte 10" in separated
    assert "contains no text" in message("c.txt", b" \n")
    good = b'{"text": "a"}\n'
    assert "a.jsonl:2 is not valid JSON" in message("a.jsonl", good + b'{"text": "b"\n')
    missing = message("b.jsonl", good + b'{"body": "b", "title": "c"}\n')
    assert "b.jsonl:2 has no key 'text'; set data.text_key to one of: body, title" in missing
    assert "c.jsonl:1: 'text' is int, not text" in message("c.jsonl", b'{"text": 3}')
    assert "d.jsonl:1 is not a JSON object" in message("d.jsonl", b"[1]")
    assert "e.jsonl is not UTF-8 at byte 16" in message("e.jsonl", good + b'"a\xff"')
    assert "f.jsonl:1: half of a surrogate pair" in message("f.jsonl", b'{"text": "\\ud800"}')


def test_null_texts_are_skipped_and_reported(tmp_path, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    texts = sentences(60)
    parquet.write_table(pa.table({"text": [None, *texts, None]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": null}\n')
    dataset = prepare(data_spec(tmp_path / "cache", source=f"text:{tmp_path}/*.*"))
    assert (dataset.meta.train.documents or 0) + (dataset.meta.validation.documents or 0) == len(texts)
    place = f"{tmp_path}/a.parquet: row"
    assert f"skipped rows whose 'text' is null: 2 ({place} 0, {place} 61)" in capsys.readouterr().err
    assert f"skipped lines whose 'text' is null: 1 ({tmp_path}/b.jsonl:1)" in "\n".join(dataset.meta.notes)


@pytest.mark.parametrize("source", ["pystdlibs", "pystdlib:", "tfds:", "text:", "file:x", ""])
def test_error_of_a_malformed_source_lists_the_allowed_forms(source):
    with pytest.raises(UserError, match="pystdlib, tfds:NAME, text:GLOB, tokens:GLOB"):
        sources.split_source(source)


def standard_library() -> list[str]:
    """Return the texts of the standard library, read independently."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = ("/test/", "/tests/", "/idle_test/", "/site-packages/", "/dist-packages/", "/__pycache__/")
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("**/*.py"))
    names = [name for name in names if not any(part in f"/{name}" for part in skipped)]
    texts = []
    for name in names:
        with tokenize.open(root / name) as file:
            texts.append(file.read())
    return [text for text in texts if text.strip()]


def test_pystdlib_is_the_standard_library(tmp_path):
    documents = read(tmp_path, "pystdlib")
    assert documents == standard_library()
    assert len(documents) > 500 and any("class Path" in text for text in documents)


TINY_BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"body": tfds.features.Text(), "label": tfds.features.Scalar(dtype=np.int64)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(300), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for n in range(count):
            yield n, {"body": f"document {n} é", "label": n}
"""


def test_tfds_dataset_is_read_and_errors_are_one_line(tmp_path, monkeypatch):
    package = tmp_path / "tiny_corpus"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tiny_corpus_dataset_builder.py").write_text(TINY_BUILDER)
    monkeypatch.syspath_prepend(tmp_path)
    import tensorflow_datasets as tfds
    from tiny_corpus import tiny_corpus_dataset_builder  # pyright: ignore[reportMissingImports]

    tfds.disable_progress_bar()
    data_dir = tmp_path / "tfds"
    tiny_corpus_dataset_builder.Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
    name, here = "tfds:tiny_corpus", {"tfds_data_dir": str(data_dir), "text_key": "body"}
    assert sorted(read(tmp_path, name, **here)) == sorted(f"document {n} é" for n in range(300))
    assert len(read(tmp_path, name, **here, split="test")) == 2
    assert len(read(tmp_path, name, **here, split="train[:10%]")) == 30
    assert "no split 'dev'; set data.split to one of: train, test" in refusal(tmp_path, name, **here, split="dev")
    assert "no key 'text'; set data.text_key to one of: body, label" in refusal(
        tmp_path, name, **(here | {"text_key": "text"})
    )
    assert "'label' is not text" in refusal(tmp_path, name, **(here | {"text_key": "label"}))
    assert "TFDS has no dataset 'no_such_corpus'" in refusal(tmp_path, "tfds:no_such_corpus", **here)

    info = data_dir / "tiny_corpus" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    stored_otherwise = refusal(tmp_path, name, **here)
    assert "is stored as tfrecord, which needs TensorFlow; store it as array_record" in stored_otherwise


def test_error_of_an_unpreparable_tfds_dataset_has_the_reason(tmp_path, monkeypatch):
    """The builder raises an error of another library with several lines, as it does without network."""
    import tensorflow_datasets as tfds

    def unreachable(self, **_):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    message = refusal(tmp_path, "tfds:lm1b", tfds_data_dir=str(tmp_path))
    assert "not prepared and cannot be prepared here (ConnectionError: no route to host)" in message


def test_every_format_yields_the_same_tokens(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    texts = sentences(60)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "one.jsonl").write_text(lines)
    (tmp_path / "one.txt").write_text("<|end|>".join(texts), encoding="utf-8")
    parquet.write_table(pa.table({"text": texts}), tmp_path / "one.parquet")
    prepared = [
        prepare(data_spec(tmp_path / "cache", source=source, document_separator=separator)).meta.sha256
        for source, separator in (
            (write_corpus(tmp_path / "many", texts), None),
            (f"text:{tmp_path}/one.txt", "<|end|>"),
            (f"text:{tmp_path}/one.jsonl", None),
            (f"text:{tmp_path}/one.parquet", None),
        )
    ]
    assert len(set(prepared)) == 1
