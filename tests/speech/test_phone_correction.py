from __future__ import annotations

import numpy as np
import pytest
import torch

from sparq.errors import UserError
from sparq.speech.phone_correction import REACH, Correction, Labelled, train_correction
from sparq.speech.phones import PAUSE
from sparq.speech.phonetic import CONTEXT, Heard, PhoneClassifier, load_classifier, refine_classifier

PHONES = (PAUSE, "a", "b")


def random_correction(dimension=6, projected=5, hidden=7, phones=3, seed=0):
    random = np.random.default_rng(seed)
    seen = (2 * REACH + 1) * projected
    shapes = ((projected, dimension), (projected,), (hidden, seen), (hidden,), (phones, hidden), (phones,))
    return Correction(*(random.normal(size=shape).astype(np.float16).astype(np.float32) for shape in shapes))


def classifier(correction=None, dimension=6, seed=1):
    weight = np.random.default_rng(seed).normal(size=(3, (2 * CONTEXT + 1) * dimension))
    return PhoneClassifier(weight.astype(np.float16).astype(np.float32), np.zeros(3, np.float32), PHONES, correction)


def test_a_correction_is_two_layers_over_nine_frames():
    correction = random_correction()
    features = np.random.default_rng(2).normal(size=(12, 6)).astype(np.float32)
    padded = torch.from_numpy(np.pad(features, ((REACH, REACH), (0, 0)), "edge")).double()
    weights = {name: torch.from_numpy(its).double() for name, its in correction.arrays().items()}
    projected = torch.relu(padded @ weights["projection"].T + weights["projection_bias"])
    seen = torch.stack([projected[i : i + 2 * REACH + 1].flatten() for i in range(12)])
    hidden = torch.relu(seen @ weights["hidden"].T + weights["hidden_bias"])
    expected = hidden @ weights["output"].T + weights["output_bias"]
    np.testing.assert_allclose(correction.logits(features), expected.numpy(), rtol=1e-4, atol=1e-4)
    corrected = classifier(correction).logits(features)
    np.testing.assert_allclose(corrected, classifier().logits(features) + correction.logits(features), rtol=1e-5)
    assert classifier(correction).logits(features[:0]).shape == (0, 3)


def test_a_corrected_classifier_is_saved_with_its_correction(tmp_path):
    refined = classifier(random_correction())
    refined.save(tmp_path / "c.safetensors")
    loaded = load_classifier(tmp_path / "c.safetensors")
    assert loaded.arrays().keys() == refined.arrays().keys()
    for name, its in refined.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], its)
    classifier().save(tmp_path / "plain.safetensors")
    assert load_classifier(tmp_path / "plain.safetensors").correction is None


def curved(seed, *, timed, swapped=False):
    """Frames whose phone is no line's to tell: "a" where two numbers have one sign, "b" where they differ."""
    random = np.random.default_rng(seed)
    spoken = [PAUSE] * 4 + [phone for phone in random.permutation(["a", "b"] * 4) for _ in range(6)] + [PAUSE] * 4
    first = random.choice([-1.0, 1.0], len(spoken))
    second = np.where(np.array(spoken) == "a", first, -first)
    silence = np.array(spoken) == PAUSE
    features = np.stack([first * ~silence, second * ~silence, silence * 2.0], axis=1)
    features = np.concatenate([features, np.zeros((len(spoken), 3))], axis=1) + random.normal(0, 0.2, (len(spoken), 6))
    labels = [{"a": "b", "b": "a"}.get(phone, phone) for phone in spoken] if swapped else spoken
    return Heard(features.astype(np.float32), labels, timed), spoken


def test_it_tells_apart_what_a_line_does_not():
    utterances = [curved(seed, timed=True)[0] for seed in range(60)]

    classes = {phone: index for index, phone in enumerate(PHONES)}
    labelled = [
        Labelled(its.features, np.zeros((len(its.features), 3), np.float32), labels, timed=False)
        for its in utterances
        for labels in [np.array([classes[phone] for phone in its.phones], np.int64)]
    ]
    correction = train_correction(labelled)
    again = train_correction(labelled)
    found = [correction.logits(curved(seed, timed=True)[0].features).argmax(1) for seed in range(900, 910)]
    spoken = [[classes[phone] for phone in curved(seed, timed=True)[1]] for seed in range(900, 910)]
    assert np.mean(np.concatenate(found) == np.concatenate(spoken)) > 0.9
    np.testing.assert_array_equal(correction.output, again.output)


def test_what_was_said_of_a_timed_voice_is_half_of_what_is_learnt():
    """The classifier is sure of "a"; a voice that times a "b" moves it half way, one that is aligned all the way."""
    features = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)
    said = np.tile(np.array([[0.0, 8.0, 0.0]], np.float32), (40, 1))
    labels = np.full(40, 2, np.int64)

    def share_of_b(*, timed):
        logits = said + train_correction([Labelled(features, said, labels, timed)] * 10).logits(features)
        return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, 2].mean()

    assert 0.35 < share_of_b(timed=True) < 0.65
    assert share_of_b(timed=False) > 0.9


def test_nothing_that_sounds_like_its_text_is_refused():
    silent = Heard(np.zeros((1, 6), np.float32), ("a", "b", "a"), timed=False)
    with pytest.raises(UserError, match="none of 1 utterances sounds like its text"):
        refine_classifier(classifier(), [silent])
