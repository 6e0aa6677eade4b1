"""What a part of a corpus promises: its own counts and fingerprint, also in another process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_adam.errors import RefusedError
from coupled_adam.text import Corpus, TextError, corpus, synthetic


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Corpus:
    return synthetic(200, 12_000, 1.0, cache=tmp_path_factory.mktemp("cache"))


def pickled(value: Corpus) -> Corpus:
    return pickle.loads(pickle.dumps(value))


def assert_same(one: Corpus, other: Corpus) -> None:
    assert np.array_equal(one.train, other.train)
    assert np.array_equal(one.validation, other.validation)
    assert one.train.dtype == other.train.dtype
    assert np.array_equal(one.counts, other.counts)
    assert (one.name, one.vocabulary_size) == (other.name, other.vocabulary_size)
    assert np.array_equal(one.token_classes, other.token_classes)
    assert one.fingerprint == other.fingerprint


def forgetful(value: Corpus) -> Corpus:
    """The same arrays without what is known of them, so that it is computed anew."""
    return dataclasses.replace(
        value, train=np.array(value.train), validation=np.array(value.validation)
    )


def test_the_fingerprint_depends_on_the_tokens_and_not_on_where_they_lie(small):
    assert small.fingerprint == forgetful(small).fingerprint
    assert np.array_equal(small.counts, forgetful(small).counts)
    renamed = dataclasses.replace(small, name="another name")
    assert renamed.fingerprint == small.fingerprint


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10_800))
def test_a_part_has_its_own_counts_and_fingerprint(small, tokens):
    part = small.part(tokens)
    assert np.array_equal(part.train, small.train[:tokens])
    assert part.validation is small.validation
    assert np.array_equal(part.counts, np.bincount(small.train[:tokens], minlength=200))
    assert part.frequencies.sum() == pytest.approx(1)
    assert part.fingerprint == forgetful(part).fingerprint
    assert (part.fingerprint == small.fingerprint) == (tokens == len(small.train))
    if tokens < len(small.train):
        assert part.name == f"{small.name}, first {tokens:,} tokens"
    assert_same(pickled(part), part)
    assert len(pickle.dumps(part)) < 2500  # its place and the word classes, not its tokens


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_other_tokens_survive_pickling(small, data):
    first = data.draw(st.integers(0, 10_000))
    end = data.draw(st.integers(first + 1, 10_800))
    step = data.draw(st.sampled_from([1, 2, 7, -1]))
    kind = data.draw(st.sampled_from([np.uint16, np.uint32, np.int64, np.int16]))
    train = small.train[first:end][::step].astype(kind, copy=False)
    swapped = data.draw(st.booleans())
    other = dataclasses.replace(
        small, train=train, validation=small.train[:50] if swapped else small.validation
    )
    assert_same(pickled(other), other)
    assert np.array_equal(other.counts, np.bincount(train, minlength=200))
    plain = dataclasses.replace(other, train=np.array(train, "<u2"))
    assert other.fingerprint == plain.fingerprint
    assert other.fingerprint != small.fingerprint


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_a_shuffled_twin_has_the_same_tokens_in_another_order(small, seed):
    twin = small.shuffled(seed)
    assert np.array_equal(twin.counts, small.counts)
    assert np.array_equal(np.sort(twin.validation), np.sort(small.validation))
    assert not np.array_equal(twin.train, small.train)
    assert twin.fingerprint not in (small.fingerprint, small.shuffled(seed + 1).fingerprint)
    assert twin.name == f"{small.name}, shuffled with seed {seed}"
    assert_same(twin, small.shuffled(seed))
    assert_same(pickled(twin), twin)
    assert_same(pickled(twin.part(500)), small.shuffled(seed).part(500))


@pytest.mark.parametrize("tokens", [1, 700, 1024, 5_000, 10_799])
def test_spread_tokens_are_pieces_from_all_over_the_text(small, tokens):
    spread = small.spread(tokens, piece=100)
    assert len(spread.train) == tokens
    assert spread.validation is small.validation
    numbered = dataclasses.replace(small, vocabulary_size=10_800, train=np.arange(10_800))
    places = numbered.spread(tokens, piece=100).train
    assert np.array_equal(small.train[places], spread.train)
    starts = places[::100]
    assert (np.diff(starts) >= 99).all()
    if tokens > 200:
        assert starts[0] == 0 and starts[-1] == 10_700
    assert_same(pickled(spread), spread)


def test_all_tokens_spread_are_the_text(small):
    assert small.spread(10_800) is small
    with pytest.raises(TextError, match="at least one token"):
        small.spread(100, piece=0)
    with pytest.raises(TextError, match=r"from 1 to 10,800 tokens"):
        small.spread(10_801)


def seen_by_a_worker(value: Corpus) -> tuple[int, int, str, list[int]]:
    return len(value.train), int(value.counts.sum()), value.fingerprint, value.train[-3:].tolist()


def test_a_worker_of_a_sweep_gets_the_part_and_not_the_whole(small):
    parts = [small.part(700), small.shuffled(1), dataclasses.replace(small, train=small.train[5:9])]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(seen_by_a_worker, parts) == [seen_by_a_worker(part) for part in parts]


@pytest.mark.parametrize("tokens", [0, -1, 10_801, 2.5, "all", None])
def test_a_part_that_cannot_be_is_refused(small, tokens):
    with pytest.raises(TextError, match=r"must have from 1 to 10,800 tokens, not"):
        small.part(tokens)


def test_a_shuffle_that_cannot_be_is_refused(small):
    with pytest.raises(TextError, match="seed must not be negative"):
        small.shuffled(-1)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ([1, 2, 3], "must be an array of whole numbers"),
        (np.zeros(5), "must be an array of whole numbers"),
        (np.zeros((5, 2), np.uint16), "must be an array of whole numbers"),
        (np.array([1, 200]), "token id 200 is not in the vocabulary"),
        (np.array([-1, 7]), "token id -1 is not in the vocabulary"),
    ],
)
def test_what_are_no_tokens_is_refused(small, train, says):
    with pytest.raises(RefusedError, match=says):
        dataclasses.replace(small, train=train)


def test_tokens_outside_the_vocabulary_are_not_counted(small):
    odd = dataclasses.replace(small, train=np.array([1, 250], np.uint16))
    with pytest.raises(TextError, match="token id 250 is not in the vocabulary"):
        odd.counts  # noqa: B018


def test_a_corpus_whose_files_are_gone_or_cut_says_so(small, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(small.folder, folder)
    packed = pickle.dumps(corpus.open_corpus(folder, "mine").part(900))
    for size, says in ((100, "have been cut short"), (0, "are damaged .* load the text again")):
        with (folder / "train.bin").open("r+b") as file:
            file.truncate(size)
        with pytest.raises(TextError, match=rf"token files of mine.* in .* {says}"):
            pickle.loads(packed)
    (folder / "train.bin").unlink()
    with pytest.raises(TextError, match=r"token files of mine.* are damaged .* load the text"):
        pickle.loads(packed)
    (folder / "meta.json").write_text("{")
    with pytest.raises(TextError, match=r"token files of mine.* are damaged .* load the text"):
        pickle.loads(packed)
    shutil.rmtree(folder)
    with pytest.raises(TextError, match=r"token files of mine.* are gone .* load the text"):
        pickle.loads(packed)


# The tokeniser's file


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[1, 2]", b"no json", b"\x00" * 50, "{}".encode("utf-16"), b"\xff"],
)
def test_a_damaged_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"tokenizer\.json is (damaged|UTF-16|not UTF-8)"):
        corpus.read_tokenizer(path)


def test_a_tokenizer_that_an_editor_has_saved_is_read(small, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + (small.folder / "tokenizer.json").read_bytes())
    assert corpus.read_tokenizer(path).get_vocab_size() == 200


def test_a_tokenizer_that_was_damaged_while_its_corpus_is_open_is_named(small, tmp_path):
    folder = Path(shutil.copytree(small.folder, tmp_path / "copy"))
    opened = corpus.open_corpus(folder, "mine")
    (folder / "tokenizer.json").write_text("{")
    for use in (
        lambda: opened.encode("c0w0"),
        lambda: opened.decode([1]),
        lambda: opened.token_text(1),
    ):
        with pytest.raises(
            TextError, match=r"tokenizer\.json is damaged .* prepare the text again"
        ):
            use()
