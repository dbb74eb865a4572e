from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError

from sparq.errors import UserError
from sparq.speech.phones import PAUSE, Phone, frame_phones, pronounce, timed_phones
from sparq.speech.phonetic import CONTEXT, Heard, PhoneClassifier, load_classifier, train_classifier
from sparq.speech.units import Codebook, fit_codebook, fit_phonetic_codebook

PHONES = (PAUSE, "a", "b", "c")
MEANS = np.random.default_rng(7).normal(size=(len(PHONES), 6))
ENCODER = SimpleNamespace(fingerprint="abc", name="moonshine-tiny", layers=(3, 4), dimension=6)


def utterance(seed, *, timed, reader=0.0, noise=0.7):
    """Frames of a random word: each phone's mean, a reader's own shift, and noise."""
    random = np.random.default_rng(seed)
    sequence = [PAUSE, *random.permutation(["a", "b", "c", "a", "b"]), PAUSE]
    spoken = [phone for phone in sequence for _ in range(random.integers(4, 9))]
    features = MEANS[[PHONES.index(phone) for phone in spoken]] + random.normal(0, noise, (len(spoken), 6))
    features += reader * np.random.default_rng(99).normal(size=6)
    return Heard(features.astype(np.float32), spoken if timed else sequence, timed), spoken


def random_classifier(seed=0, phones=PHONES, dimension=6):
    random = np.random.default_rng(seed)
    weight = random.normal(size=(len(phones), (2 * CONTEXT + 1) * dimension)).astype(np.float16).astype(np.float32)
    return PhoneClassifier(weight, random.normal(size=len(phones)).astype(np.float32), phones)


def test_logits_are_one_linear_layer_on_neighbouring_frames():
    classifier = random_classifier()
    features = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    padded = np.concatenate([features[:1], features, features[-1:]])
    stacked = np.stack([padded[i : i + 3].reshape(-1) for i in range(9)])
    np.testing.assert_allclose(
        classifier.logits(features), stacked @ classifier.weight.T + classifier.bias, rtol=1e-5, atol=1e-5
    )
    assert classifier.logits(features[:0]).shape == (0, 4)
    with pytest.raises(UserError, match=r"features \[9, 5\] do not fit"):
        classifier.logits(features[:, :5])


def test_segments_are_runs_of_the_likeliest_phone():
    classifier = random_classifier(3)
    features = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32)
    means, lengths = classifier.segments(features)
    logits = classifier.logits(features).astype(np.float64)
    likeliest = logits.argmax(axis=1)
    assert lengths.sum() == 40
    assert (np.diff(np.repeat(np.arange(len(lengths)), lengths)) == (np.diff(likeliest) != 0)).all()
    roots = np.sqrt(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    ends = np.cumsum(lengths)
    for mean, start, end in zip(means, ends - lengths, ends, strict=True):
        np.testing.assert_allclose(mean, roots[start:end].mean(axis=0), rtol=1e-4, atol=1e-6)
    none, no_lengths = classifier.segments(features[:0])
    assert none.shape == (0, 4)
    assert not no_lengths.size


def test_logits_too_large_for_an_exponential():
    classifier = random_classifier(3)
    means, _ = classifier.segments(np.full((3, 6), 3e3, np.float32))
    assert np.isfinite(means).all()


def test_training_on_a_timed_voice_and_aligning_another():
    """The other reader is shifted in the features; only what is aligned of him teaches that the shift says nothing."""
    timed = [utterance(seed, timed=True)[0] for seed in range(60)]
    others = [utterance(seed, timed=False, reader=0.5)[0] for seed in range(100, 160)]

    def accuracy(classifier, reader):
        heard = [utterance(seed, timed=True, reader=reader)[0] for seed in range(900, 910)]
        right = [
            classifier.phones[found] == phone
            for one in heard
            for found, phone in zip(classifier.logits(one.features).argmax(1), one.phones, strict=True)
        ]
        return np.mean(right)

    alone, both = train_classifier(timed), train_classifier(timed + others)
    assert accuracy(alone, 0.0) > 0.9
    assert accuracy(both, 0.0) > 0.9
    assert accuracy(both, 0.5) > accuracy(alone, 0.5) + 0.05
    np.testing.assert_array_equal(train_classifier(timed + others).weight, both.weight)


def test_rare_phones_are_left_out_and_timing_is_needed():
    timed = [utterance(seed, timed=True)[0] for seed in range(30)]
    rare = Heard(timed[0].features[:3], ["q", "q", "q"], timed=True)
    assert train_classifier([*timed, rare]).phones == ("a", "b", "c", PAUSE)
    with pytest.raises(UserError, match="0 frames with known phones"):
        train_classifier([utterance(0, timed=False)[0]])


def test_phonetic_units_tell_phones_where_plain_ones_tell_readers(tmp_path):
    heard = [utterance(seed, timed=True, reader=reader)[0] for seed in range(80) for reader in (0.0, 0.5)]
    book = fit_phonetic_codebook(heard, ENCODER, k=6)
    plain = fit_codebook([one.features for one in heard], ENCODER, k=6)

    def purity(codebook):
        """The share of frames, of two readers, whose phone is the commonest of their unit."""
        found = Counter()
        for seed in range(900, 910):
            for reader in (0.0, 0.5):
                one, spoken = utterance(seed, timed=True, reader=reader)
                found.update(zip(codebook.assign(one.features).tolist(), spoken, strict=True))
        return sum(max(found[unit, phone] for phone in PHONES) for unit in range(6)) / found.total()

    assert purity(book) > 0.8
    assert purity(book) > purity(plain) + 0.05
    one, spoken = utterance(999, timed=True)
    units = book.assign(one.features)
    assert units.shape == (len(one.features),)
    book.save(tmp_path / "book")
    loaded = Codebook.load(tmp_path / "book")
    assert (loaded.fingerprint, loaded.layers, loaded.size) == (book.fingerprint, (3, 4), 6)
    np.testing.assert_array_equal(loaded.assign(one.features), units)
    silent = np.isin(units, book.pauses)
    assert 0 < len(book.pauses) < 6
    assert np.mean(silent == np.array([phone == PAUSE for phone in spoken])) > 0.8
    assert not len(plain.pauses)
    assert book.fingerprint != Codebook(book.centroids, "abc", "moonshine-tiny", (3, 4)).fingerprint
    (tmp_path / "book" / "classifier.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged codebook"):
        Codebook.load(tmp_path / "book")


def test_classifier_files(tmp_path):
    classifier = random_classifier()
    classifier.save(tmp_path / "c.safetensors")
    loaded = load_classifier(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(loaded.weight, classifier.weight)
    assert loaded.phones == PHONES
    (tmp_path / "c.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(SafetensorError):
        load_classifier(tmp_path / "c.safetensors")


def test_time_of_marks_goes_to_phones():
    phones = timed_phones(["_", "ˈ", "ɔ", "ː", " ", "f", "!"], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert [phone.symbol for phone in phones] == [PAUSE, "ɔ", PAUSE, "f", PAUSE]
    assert [phone.end for phone in phones] == [0.1, 0.4, 0.5, 0.6, 0.7]
    assert [phone.start for phone in phones][2:] == [0.4, 0.5, 0.6]


def test_frames_take_the_phone_in_their_middle():
    encoder = SimpleNamespace(hop=1600, first_frame=3200)  # middles at 0.1, 0.2, ... s
    phones = [Phone("a", 0.0, 0.15), Phone(PAUSE, 0.15, 0.25), Phone("b", 0.25, 0.45)]
    assert frame_phones(phones, 6, encoder) == ["a", PAUSE, "b", "b", PAUSE, PAUSE]


def test_pronunciation():
    pytest.importorskip("hibari")
    phones = pronounce("The cat's away, and 42 mice play.")
    assert phones[0] == phones[-1] == PAUSE
    assert not any(a == b == PAUSE for a, b in itertools.pairwise(phones))
    assert "".join(phones).split(PAUSE)[2] == "kæts"
    assert pronounce("--") == (PAUSE,)
