"""Files of a corpus: globs, links, Git LFS pointers, compressed text."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
from data_specs import data_spec, sentences, write_corpus

from smallbatch.data import sources
from smallbatch.data.prepare import dataset_dir, prepare
from smallbatch.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064}\nsize 12345\n"


def read(tmp_path: Path, pattern: str) -> list[str]:
    return list(sources.documents(data_spec(tmp_path / "cache", source=f"text:{tmp_path}/{pattern}")))


def test_link_loop_yields_every_file_once(tmp_path):
    texts = sentences(40)
    write_corpus(tmp_path / "corpus", texts)
    (tmp_path / "corpus" / "loop").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "00000-link.txt").symlink_to(tmp_path / "corpus" / "00000.txt")
    assert read(tmp_path, "corpus/**/*.txt") == texts
    assert read(tmp_path, "corpus/**/**/*.txt") == texts
    assert read(tmp_path, "corpus/*/*.txt") == texts


def test_two_link_loops_terminate(tmp_path):
    """There are 2^40 paths."""
    write_corpus(tmp_path / "corpus", ["text"])
    for name in ("loop", "again"):
        (tmp_path / "corpus" / name).symlink_to(tmp_path / "corpus")
    assert read(tmp_path, "corpus/**/*.txt") == ["text"]


def test_links_to_other_directories_are_followed(tmp_path):
    texts = sentences(3)
    write_corpus(tmp_path / "elsewhere", texts)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "b").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path, "corpus/**/*.txt") == texts
    assert read(tmp_path, "corpus/**/b/*.txt") == texts


def test_glob_matches_the_same_files_as_the_standard_library(tmp_path, monkeypatch):
    import glob

    for name in ("a.txt", "d/b.txt", "d/e/c.txt", "d/.hidden.txt", ".h/x.txt", "[1]/y.txt", "d/z.txt.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    from smallbatch.data.corpus_files import Skipped, matched_files

    for pattern in ("**/*.txt", "*.txt", "**", "d/**", "d/**/c.txt", "*/*", "./d/*.txt", "[[]1]/*", "d/.*", "**/e/*",
                    "d/e/../*.txt", "none/*", "a.txt/*", "d//b.txt", f"{tmp_path}/**/[bc].txt"):  # fmt: skip
        expected = sorted(os.path.normpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        found = matched_files(pattern, "text:", Skipped()) if expected else []
        assert sorted(os.path.normpath(path) for path in found) == expected, pattern


def test_unreadable_directory_is_an_error(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match=r"cannot read the directory .*Permission denied"):
        read(tmp_path, "**/*.txt")


def test_dangling_links_and_lfs_pointers_are_skipped_and_reported(tmp_path, capsys):
    texts = sentences(40)
    source = write_corpus(tmp_path / "corpus", texts)
    (tmp_path / "corpus" / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "corpus" / "self.txt").symlink_to(tmp_path / "corpus" / "self.txt")
    for n in range(5):
        (tmp_path / "corpus" / f"p{n}.txt").write_text(POINTER.format(n))
    spec = data_spec(tmp_path / "cache", source=source)
    for _ in ("prepared", "reused"):
        dataset = prepare(spec)
        printed = capsys.readouterr().err
        corpus = tmp_path / "corpus"
        assert f"links without a target: 2 ({corpus}/gone.txt, {corpus}/self.txt)" in printed
        assert f"`git lfs pull` fetches: 5 ({corpus}/p0.txt, {corpus}/p1.txt, {corpus}/p2.txt, ...)" in printed
    assert (dataset.meta.train.documents or 0) + (dataset.meta.validation.documents or 0) == len(texts)
    (tmp_path / "corpus" / "p0.txt").write_text("its content")
    assert dataset_dir(spec) != dataset.dir


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.txt.gz"])
def test_corpus_of_only_pointers_or_dangling_links_is_an_error(tmp_path, name):
    (tmp_path / name).write_text(POINTER.format(1))
    with pytest.raises(UserError, match=r"all 1 files are Git LFS pointers.*run `git lfs pull`"):
        read(tmp_path, "a*")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file matches .*links without a target: 1 \(.*restore the targets"):
        read(tmp_path, "a*")


def test_lfs_pointer_as_tokens_or_tokenizer_is_an_error(tmp_path):
    (tmp_path / "t.bin").write_text(POINTER.format(1) + "\n")  # an even number of bytes, and ids below 50257
    (tmp_path / "t.json").write_text(POINTER.format(1))
    tokens = data_spec(tmp_path, source=f"tokens:{tmp_path}/t.bin", tokens_vocab_size=50257)
    text = data_spec(tmp_path, source=write_corpus(tmp_path / "c", ["a"]), tokenizer=f"file:{tmp_path}/t.json")
    for spec in (tokens, text):
        with pytest.raises(UserError, match="is a Git LFS pointer, not its content; run `git lfs pull`"):
            prepare(spec)


def compressed(path: Path, content: bytes) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
            stream.write(content)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_text_equals_plain_text(tmp_path, ending):
    texts = sentences(50)
    compressed(tmp_path / f"a.txt{ending}", "<|end|>".join(texts).encode())
    compressed(tmp_path / f"b.jsonl{ending}", "".join(json.dumps({"text": t}) + "\n" for t in texts).encode())
    spec = data_spec(tmp_path / "cache", source=f"text:{tmp_path}/*{ending}", document_separator="<|end|>")
    assert list(sources.documents(spec)) == texts + texts
    first = dataset_dir(spec)
    compressed(tmp_path / f"a.txt{ending}", "<|end|>".join(texts[:-1]).encode())
    assert dataset_dir(spec) != first
    two_parts = (tmp_path / f"a.txt{ending}").read_bytes() * 2  # `cat a.gz b.gz` is a valid archive
    (tmp_path / f"a.txt{ending}").write_bytes(two_parts)
    assert len(list(sources.documents(spec))) == 2 * len(texts[:-1]) - 1 + len(texts)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst"])
def test_error_names_a_damaged_archive(tmp_path, name):
    path = tmp_path / name
    compressed(path, b"".join(b'{"text": "%d"}\n' % n for n in range(5000)))
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:100], b"", b"rubbish" * 30):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name} is a damaged or truncated \.\w+ archive") as error:
            read(tmp_path, name)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the zstd program")
def test_archive_of_the_zstd_program_is_read(tmp_path):
    import subprocess

    (tmp_path / "a.txt").write_text("compressed by another program")
    subprocess.run(["zstd", "-q", "--rm", tmp_path / "a.txt"], check=True)
    assert read(tmp_path, "*.zst") == ["compressed by another program"]
