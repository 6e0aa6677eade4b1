from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupled_adam.text import END_OF_TEXT, Corpus, TextError, load, tokens
from coupled_adam.text.tokens import (
    encoded,
    route,
    sample_size,
    split_documents,
    survey,
    train_bpe,
)

# Encoding and decoding


@given(st.text())
def test_every_text_survives_encoding_and_decoding(wikipedia, text):
    assert wikipedia.decode(wikipedia.encode(text)) == text


@pytest.mark.parametrize("text", ["", END_OF_TEXT, " a\t\r\n\0 é", "🙂 日本語 עברית", "'' don't"])
def test_awkward_texts_survive_too(wikipedia, text):
    ids = wikipedia.encode(text)
    assert wikipedia.decode(ids) == text
    assert ids.dtype == wikipedia.train.dtype
    assert 0 not in ids  # no text can end a document


def test_end_of_text_is_token_zero(wikipedia):
    assert wikipedia.token_text(0) == wikipedia.decode([0]) == END_OF_TEXT
    assert wikipedia.train[-1] == wikipedia.validation[-1] == 0


def test_tokens_are_shown_in_printable_form(wikipedia):
    shown = [wikipedia.token_text(token) for token in range(4096)]
    assert all(text.isprintable() and " " not in text for text in shown)
    assert wikipedia.token_text(wikipedia.encode(" the")[0]) == "␣the"
    assert wikipedia.token_text(wikipedia.encode("\n")[0]) == "⏎"
    assert wikipedia.token_text(wikipedia.encode("\t")[0]) == "⇥"
    assert wikipedia.token_text(wikipedia.encode("🙂")[0]).startswith(r"\xf0")
    assert len(set(shown)) > 4090


@pytest.mark.parametrize("token", [-1, 4096])
def test_an_unknown_id_is_refused(wikipedia, token):
    for use in (wikipedia.token_text, lambda t: wikipedia.decode([5, t])):
        with pytest.raises(TextError, match=f"{token} is not in the vocabulary .* 0 to 4095"):
            use(token)


def test_a_lone_surrogate_is_refused(wikipedia):
    with pytest.raises(TextError, match="cannot encode"):
        wikipedia.encode("\ud800")


# The corpus


def test_counts_are_of_the_training_tokens(wikipedia):
    assert np.array_equal(wikipedia.counts, np.bincount(wikipedia.train, minlength=4096))
    assert wikipedia.counts.dtype == np.int64
    assert wikipedia.frequencies.dtype == np.float64
    assert wikipedia.frequencies.sum() == pytest.approx(1)
    assert wikipedia.token_classes is None


def test_the_tokens_are_mapped_and_cannot_be_written(wikipedia):
    assert isinstance(wikipedia.train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        wikipedia.train[0] = 1


def test_a_pickle_holds_the_place_of_the_tokens_instead_of_the_tokens(wikipedia):
    packed = pickle.dumps(wikipedia)
    assert len(packed) < 1000
    for again in (pickle.loads(packed), copy.deepcopy(wikipedia)):
        assert isinstance(again, Corpus)
        assert isinstance(again.train, np.memmap)
        assert np.array_equal(again.validation, wikipedia.validation)
        assert (again.name, again.fingerprint) == (wikipedia.name, wikipedia.fingerprint)
        assert again.decode(again.train[:9]) == wikipedia.decode(wikipedia.train[:9])


def test_a_large_vocabulary_gets_wider_tokens(tmp_path, text, monkeypatch):
    tokenizer = train_bpe([text], 300)
    parts = [("train", np.array([1, 2])), ("validation", np.array([299]))]
    monkeypatch.setattr(tokenizer.__class__, "get_vocab_size", lambda self: 65537, raising=False)
    monkeypatch.setattr(tokenizer.__class__, "id_to_token", lambda self, i: str(i), raising=False)
    assert tokens.write_tokens(tmp_path, tokenizer, parts)["dtype"] == "<u4"
    assert np.fromfile(tmp_path / "train.bin", "<u4").tolist() == [1, 2]


# Fingerprint


def test_the_fingerprint_tells_text_tokeniser_and_split_apart(tmp_path, text, monkeypatch):
    def fingerprint(content, size, cache="cache"):
        (tmp_path / "a.txt").write_text(content, encoding="utf-8")
        return load(tmp_path / "a.txt", size, cache=tmp_path / cache).fingerprint

    first = fingerprint(text, 300)
    assert fingerprint(text, 300, "another cache") == first
    assert fingerprint(text + " more", 300) != first
    assert fingerprint(text, 301) != first
    monkeypatch.setattr(tokens, "VALIDATION_SHARE", 0.2)
    assert fingerprint(text, 300, "third cache") != first


def test_another_process_builds_the_same_tokens(tmp_path, text_file):
    script = (
        "import sys; from coupled_adam.text import load;"
        "print(load(sys.argv[1], 400, cache=sys.argv[2]).fingerprint)"
    )
    command = [sys.executable, "-c", script, str(text_file), str(tmp_path / "theirs")]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert load(text_file, 400, cache=tmp_path / "ours").fingerprint == theirs


# Split


documents = st.lists(st.integers(1, 2000), min_size=1, max_size=60)


@given(documents)
def test_about_a_tenth_is_held_out(lengths):
    split = split_documents(lengths)
    parts = {"train": 0, "validation": 0}
    stream = (p for n in lengths for p in ("x" * n, None))
    for part, passage in route(stream, split):
        parts[part] += len(passage or "")
    assert sum(parts.values()) == sum(lengths)
    if sum(lengths) >= 20:
        assert 0.04 <= parts["validation"] / sum(lengths) <= 0.21


@given(documents)
def test_no_passage_is_in_both_parts_and_only_one_document_is_ever_cut(lengths):
    stream = (p for i, n in enumerate(lengths) for p in (chr(0x4E00 + i) * n, None))
    found = {"train": set(), "validation": set()}
    for part, passage in route(stream, split_documents(lengths)):
        found[part] |= set(passage or "")
    assert len(found["train"] & found["validation"]) <= 1
    if split_documents(lengths).cut is None:
        assert not found["train"] & found["validation"]


def test_the_articles_held_out_are_not_trained_on(wikipedia):
    train = set(wikipedia.decode(wikipedia.train).split(END_OF_TEXT)[:-1])
    validation = set(wikipedia.decode(wikipedia.validation).split(END_OF_TEXT)[:-1])
    assert len(validation) >= 8
    assert not train & validation


def test_many_documents_are_held_out_evenly():
    assert split_documents([100] * 40).validation == {0, 10, 20, 30}


def test_the_share_of_a_large_text_is_capped(monkeypatch):
    monkeypatch.setattr(tokens, "MAXIMUM_VALIDATION", 200)
    assert len(split_documents([10] * 1000).validation) == 20


def test_a_single_document_is_cut_at_a_line_end(text_file, tmp_path, text):
    corpus = load(text_file, 300, cache=tmp_path / "cache")
    head = corpus.decode(corpus.train).removesuffix(END_OF_TEXT)
    tail = corpus.decode(corpus.validation).removesuffix(END_OF_TEXT)
    assert head + "\n" + tail == text
    assert 0.09 < len(tail) / len(text) < 0.12


def test_a_document_of_one_line_is_cut_at_a_space():
    stream = iter(["word " * 100 + "end", None])
    parts = list(route(stream, split_documents([503])))
    assert parts[0][1].endswith("word")
    assert parts[2][1].startswith("word ")
    assert [p for p, _ in parts] == ["train", "train", "validation", "validation"]


# Bounded memory


@given(st.integers(1, 300), st.integers(1, 50))
def test_the_sample_is_bounded_and_spread_over_the_text(count, bound):
    stream = (p for i in range(count) for p in (f"{i:>10}", None))
    lengths, sample = survey(stream, 10 * bound)
    assert lengths == [10] * count
    assert len(sample) <= bound
    assert len(sample) > min(count, bound) // 2 - 1
    steps = np.diff([int(passage) for passage in sample])
    assert len(set(steps)) <= 1


def test_a_large_vocabulary_is_sought_in_more_text():
    assert sample_size(4096) == sample_size(8000) == 8_000_000
    assert sample_size(50_257) == 50_257_000


def test_batches_keep_the_order(text, monkeypatch):
    monkeypatch.setattr(tokens, "BATCH", 3)
    tokenizer = train_bpe([text], 300)
    routed = [("train", "a"), ("train", None), ("validation", "b"), ("validation", None)] * 4
    found = [
        (part, tokenizer.decode(ids.tolist(), False))
        for part, ids in encoded(iter(routed), tokenizer)
    ]
    assert found == [(part, passage or END_OF_TEXT) for part, passage in routed]
