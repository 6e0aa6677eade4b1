"""What preparing a stream promises: the text, whatever interrupts it, and nothing damaged."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coupled_adam
from coupled_adam.text import TextError, collection, stream, streams

VOCABULARY = 300


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(streams, "SHARD", 40)
    monkeypatch.setattr(streams, "HELD_OUT", 8)
    monkeypatch.setattr(streams, "sample_size", lambda _: 4000)


def document(number: int) -> str:
    """Its words tell which document it is."""
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    return f"<{number}> " + " ".join(words[(number * 7 + k * k) % 150] for k in range(40))


class Collection:
    """A stand-in for what is far away: counts what is asked of it, and can break off."""

    def __init__(self, size: int = 250, breaks_at: int | None = None) -> None:
        self.size, self.breaks_at = size, breaks_at
        self.starts: list[int] = []
        self.given = 0

    def start(self, number):
        self.starts.append(number)
        for k in range(number, self.size):
            if k == self.breaks_at:
                raise ConnectionError("the line is dead")
            self.given += 1
            yield document(k)


def prepare(source, cache, documents=None):
    return stream("far away", source.start, documents, VOCABULARY, cache)


def texts_of(corpus, part):
    ids = np.asarray(getattr(corpus, part))
    ends = np.flatnonzero(ids == 0)
    return [corpus.decode(piece[piece != 0]) for piece in np.split(ids, ends + 1) if len(piece)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    for name, value in (("SHARD", 40), ("HELD_OUT", 8), ("sample_size", lambda _: 4000)):
        patch.setattr(streams, name, value)
    yield prepare(Collection(), tmp_path_factory.mktemp("whole"))
    patch.undo()


def assert_same_corpus(one, other):
    assert one.fingerprint == other.fingerprint
    assert np.array_equal(one.train, other.train)
    assert np.array_equal(one.counts, other.counts)


def test_every_document_is_there_once_and_every_eighth_is_held_out(whole):
    assert texts_of(whole, "validation") == [document(k) for k in range(7, 250, 8)]
    assert texts_of(whole, "train") == [document(k) for k in range(250) if k % 8 != 7]
    assert np.array_equal(whole.counts, np.bincount(whole.train, minlength=VOCABULARY))
    assert whole.vocabulary_size == VOCABULARY
    assert whole.name == "far away"


@pytest.mark.parametrize("documents", [110, 120, 200])
def test_the_number_of_documents_is_kept(tmp_path, documents):
    source = Collection()
    corpus = prepare(source, tmp_path, documents)
    found = texts_of(corpus, "train") + texts_of(corpus, "validation")
    assert sorted(found) == sorted(document(k) for k in range(documents))


def test_what_is_prepared_is_found_without_the_stream(tmp_path):
    first = prepare(Collection(), tmp_path)
    far_away = Collection()
    assert_same_corpus(prepare(far_away, tmp_path), first)
    assert far_away.starts == []
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("at", [1, 39, 40, 100, 249])
def test_a_stream_that_breaks_off_goes_on(whole, tmp_path, at):
    with pytest.raises(TextError, match=rf"broke off at document {at} \(ConnectionError: the line"):
        prepare(Collection(breaks_at=at), tmp_path)
    rest = Collection()
    assert_same_corpus(prepare(rest, tmp_path), whole)
    assert rest.starts[-1] == at // 40 * 40  # whole shards are not asked for again


@pytest.mark.parametrize("damage", ["a bit", "cut", "lost", "no digest", "tokenizer"])
def test_what_was_damaged_is_made_again_and_nothing_else(whole, tmp_path, damage):
    with pytest.raises(TextError):
        prepare(Collection(breaks_at=170), tmp_path)
    (parts,) = tmp_path.glob("*.parts")
    path = parts / ("tokenizer.json" if damage == "tokenizer" else "000001.npz")
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    elif damage == "no digest":
        (parts / "000001.npz.sha256").unlink()
    elif damage == "a bit":
        path.write_bytes(content[:900] + bytes([content[900] ^ 1]) + content[901:])
    else:
        path.write_bytes(content[:-100])
    rest = Collection()
    assert_same_corpus(prepare(rest, tmp_path), whole)
    assert rest.starts == ([0, 160] if damage == "tokenizer" else [40, 160])


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_killed_preparation_goes_on(whole, tmp_path):
    """Killed in the middle of a shard, and in the middle of writing one."""
    code = """
        import os, signal, sys
        from pathlib import Path
        import test_streams as t
        streams = t.streams
        streams.SHARD, streams.HELD_OUT, streams.sample_size = 40, 8, lambda _: 4000
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

        class Deadly(t.Collection):
            def start(self, number):
                for k, text in enumerate(super().start(number), number):
                    kill() if k == 130 and sys.argv[2] == "stream" else None
                    yield text

        replace, count = os.replace, []
        def deadly_replace(*paths):
            count.append(paths)
            kill() if len(count) == 7 and sys.argv[2] == "write" else None
            replace(*paths)
        os.replace = deadly_replace
        t.prepare(Deadly(), Path(sys.argv[1]))
        """
    code = "\n".join(line[8:] for line in code.splitlines())
    folders = (Path(__file__).parent, Path(coupled_adam.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    for where in ("stream", "write"):
        command = [sys.executable, "-c", code, str(tmp_path / where), where]
        assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
        assert list((tmp_path / where).glob("*.parts/*.npz"))
        rest = Collection()
        assert_same_corpus(prepare(rest, tmp_path / where), whole)
        assert rest.starts == [120 if where == "stream" else 80]


def test_an_empty_document_and_one_of_any_length_are_no_trouble(tmp_path):
    texts = [document(k) for k in range(200)]
    texts[3], texts[5] = " \n", " ".join(texts)
    corpus = stream("odd", lambda n: iter(texts[n:]), None, VOCABULARY, tmp_path)
    kept = [text for k, text in enumerate(texts) if k % 8 != 7 and k != 3]
    assert texts_of(corpus, "train") == kept


def test_too_little_text_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(TextError, match=r"too small for a vocabulary of 5,000 tokens"):
        stream("x", Collection().start, 10, 5000, tmp_path)
    with pytest.raises(TextError, match=r"tokens for validation .* take more documents"):
        prepare(Collection(), tmp_path, 9)
    with pytest.raises(TextError, match="documents must be a whole number from 1, not 0"):
        prepare(Collection(), tmp_path, 0)


@pytest.mark.parametrize("documents", [251, 280, 281, 1000])
def test_a_stream_that_ends_early_says_so_and_goes_on_when_it_is_whole(tmp_path, documents):
    with pytest.raises(TextError, match=rf"ended after 250 documents of the {documents:,} .* kept"):
        prepare(Collection(), tmp_path, documents)
    longer = Collection(size=2000)
    corpus = prepare(longer, tmp_path, documents)
    assert longer.starts == [240]  # whole shards are not asked for again
    found = texts_of(corpus, "train") + texts_of(corpus, "validation")
    assert sorted(found) == sorted(document(k) for k in range(documents))


def test_shards_serve_any_number_of_documents(whole, tmp_path):
    with pytest.raises(TextError, match="ended after 250"):
        prepare(Collection(), tmp_path, 300)
    for documents in (130, 200, 250, None):
        source = Collection()
        corpus = prepare(source, tmp_path, documents)
        found = texts_of(corpus, "train") + texts_of(corpus, "validation")
        assert sorted(found) == sorted(document(k) for k in range(documents or 250))
        if documents == 130:
            assert source.starts == [120]
    assert_same_corpus(corpus, whole)
    assert not list(tmp_path.glob("*.parts"))


def test_a_shard_that_was_cut_short_is_not_the_end_of_the_stream(whole, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("coupled_adam.text.tokens._append", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(Collection(), tmp_path, 30)
    assert [path.name for path in tmp_path.glob("*.parts/*.npz")] == ["000000-30.npz"]
    assert_same_corpus(prepare(Collection(), tmp_path), whole)


@pytest.mark.parametrize("given", ["one text", b"bytes", None, {"text": "a dict"}, 7])
def test_what_gives_no_texts_is_refused(tmp_path, given):
    kind = type(given).__name__
    with pytest.raises(TextError, match=rf"start\(0\) of mine must give texts .* {kind}: return"):
        stream("mine", lambda first: given, 250, VOCABULARY, tmp_path)


@pytest.mark.parametrize("texts", [[], ["", " \n"] * 50, ["\ufeff"]])
def test_a_stream_without_words_is_too_small(tmp_path, texts):
    with pytest.raises(TextError, match="mine is too small for a vocabulary of 300"):
        stream("mine", lambda first: texts[first:], None, VOCABULARY, tmp_path)


def test_without_datasets_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_datasets(name, *arguments, **keywords):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_datasets)
    with pytest.raises(TextError, match=r"openwebtext is streamed by .*: pip install datasets"):
        collection("openwebtext", cache=tmp_path)
    with pytest.raises(TextError, match="no collection 'c4': choose one of openwebtext, fineweb"):
        collection("c4", cache=tmp_path)


def write_jsonl(path: Path, texts: list[str | None]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_parquet(path: Path, texts: list[str | None]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=25)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("same_version", [True, False])
def test_datasets_streams_from_any_document_on(tmp_path, monkeypatch, kind, same_version):
    """The real package, on files of its own kind that are here."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    (tmp_path / "rows").mkdir()
    parts = (range(40), range(40, 70), range(70, 90), range(90, 91), range(91, 250))
    for number, documents in enumerate(parts):
        write = {"jsonl": write_jsonl, "parquet": write_parquet}[kind]
        write(tmp_path / "rows" / f"train-{number}.{kind}", [document(k) for k in documents])
    monkeypatch.setitem(streams.COLLECTIONS, "fineweb", (str(tmp_path / "rows"), None))
    monkeypatch.setattr(streams, "SHARD", 40)
    broken, whole_shard = streams._encoded_shard, []

    def interrupted(texts, first, tokenizer):
        if first == 120 and not whole_shard:
            whole_shard.append(first)
            raise KeyboardInterrupt
        return broken(texts, first, tokenizer)

    monkeypatch.setattr(streams, "_encoded_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collection("fineweb", None, VOCABULARY, tmp_path / "cache")
    opened = []
    monkeypatch.setattr(streams._Rows, "__iter__", counting(streams._Rows.__iter__, opened))
    if not same_version:  # its places may be of another form
        monkeypatch.setattr(datasets, "__version__", "99.0")
    corpus = collection("fineweb", None, VOCABULARY, tmp_path / "cache")
    assert texts_of(corpus, "train") == [document(k) for k in range(250) if k % 8 != 7]
    # 120 documents were kept, 91 of them the whole of four files. The last of these is looked at.
    looked_at = {"jsonl": [3, 4], "parquet": [4]}[kind] if same_version else range(5)
    assert opened == [[f"train-{number}.{kind}" for number in looked_at]]


def counting(rows_of, opened):
    """The rows, with a note of the files that are opened for them."""

    def iterate(self):
        files = []
        audited.append(files)
        try:
            yield from rows_of(self)
        finally:
            audited.remove(files)
            opened.append([name for name in dict.fromkeys(files)])

    return iterate


audited: list[list[str]] = []


@sys.addaudithook
def _note_opened_rows(event, arguments):
    if (
        event == "open"
        and isinstance(arguments[0], str)
        and arguments[0].endswith((".jsonl", ".parquet"))
    ):
        for files in audited:
            files.append(os.path.basename(arguments[0]))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (None, "NoneType"),
        (7, "int"),
        (b"bytes", "bytes"),
        ({"body": "a text by another name"}, "dict"),
        (float("nan"), "float"),
        ("half of a pair: \ud83d", "surrogate"),
    ],
)
@pytest.mark.parametrize("at", [0, 3, 100])
def test_a_row_that_is_no_text_is_named_and_what_was_prepared_is_kept(tmp_path, row, says, at):
    rows = [document(k) for k in range(250)]
    rows[at] = row

    def start(first):
        return iter(rows[first:])

    with pytest.raises(TextError, match=rf"document {at} of mine is .*{says}.*leave such rows out"):
        stream("mine", start, 250, VOCABULARY, tmp_path)
    kept = list(tmp_path.glob("*.parts/*.npz"))
    assert len(kept) == at // 40
    rows[at] = document(at)
    corpus = stream("mine", start, 250, VOCABULARY, tmp_path)
    assert len(texts_of(corpus, "train")) == 219


def test_a_row_without_text_of_a_dataset_is_named(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="datasets is not installed")
    (tmp_path / "rows").mkdir()
    lines = [json.dumps({"text": document(k) if k != 60 else None}) + "\n" for k in range(250)]
    (tmp_path / "rows" / "train.jsonl").write_text("".join(lines))
    monkeypatch.setitem(streams.COLLECTIONS, "fineweb", (str(tmp_path / "rows"), None))
    with pytest.raises(TextError, match="document 60 of fineweb is of type NoneType"):
        collection("fineweb", None, VOCABULARY, tmp_path / "cache")
