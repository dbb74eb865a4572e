from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sparq.errors import UserError
from sparq.speech import phone_correction
from sparq.speech.phone_correction import DILATIONS, KERNEL, REACH, Correction, Labelled, train_correction
from sparq.speech.phones import PAUSE
from sparq.speech.phonetic import CONTEXT, Heard, PhoneClassifier, load_classifier, refine_classifier

PHONES = (PAUSE, "a", "b")


def random_correction(dimension=6, width=5, hidden=7, phones=3, seed=0):
    random = np.random.default_rng(seed)
    blocks = len(DILATIONS)
    shapes = {
        "projection": (width, dimension),
        "projection_bias": (width,),
        "gains": (blocks, width),
        "filters": (blocks, width, KERNEL),
        "expansion": (blocks, hidden, width),
        "expansion_bias": (blocks, hidden),
        "contraction": (blocks, width, hidden),
        "contraction_bias": (blocks, width),
        "output": (phones, width),
        "output_bias": (phones,),
    }
    normal = Correction(**{name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    return Correction.unpack(normal.packed())


@pytest.fixture(autouse=True)
def _little_training(monkeypatch):
    monkeypatch.setattr(phone_correction, "_FEWEST_STEPS", 120)
    monkeypatch.setattr(phone_correction, "_BATCH", 500)


def classifier(correction=None, dimension=6, seed=1):
    weight = np.random.default_rng(seed).normal(size=(3, (2 * CONTEXT + 1) * dimension))
    return PhoneClassifier(weight.astype(np.float16).astype(np.float32), np.zeros(3, np.float32), PHONES, correction)


def test_a_correction_is_four_blocks_over_half_a_second_on_either_side():
    """Against a second implementation: frame by frame, in float64, with loops."""
    correction = random_correction()
    features = np.random.default_rng(2).normal(size=(60, 6)).astype(np.float32)
    weights = {name: its.astype(np.float64) for name, its in correction.arrays().items()}

    def normalised(state):
        return state / np.sqrt((state**2).mean(1, keepdims=True) + 1e-6)

    state = features @ weights["projection"].T + weights["projection_bias"]
    for block, dilation in enumerate(DILATIONS):
        normal = normalised(state) * weights["gains"][block]
        around = np.zeros_like(normal)
        for frame in range(60):
            for place in range(KERNEL):
                other = frame + (place - KERNEL // 2) * dilation
                if 0 <= other < 60:
                    around[frame] += weights["filters"][block][:, place] * normal[other]
        hidden = np.maximum(around @ weights["expansion"][block].T + weights["expansion_bias"][block], 0)
        state = state + hidden @ weights["contraction"][block].T + weights["contraction_bias"][block]
    expected = normalised(state) @ weights["output"].T + weights["output_bias"]
    np.testing.assert_allclose(correction.logits(features), expected, rtol=1e-3, atol=1e-4)
    corrected = classifier(correction).logits(features)
    np.testing.assert_allclose(
        corrected, classifier().logits(features) + correction.logits(features), rtol=1e-5, atol=1e-5
    )
    assert classifier(correction).logits(features[:0]).shape == (0, 3)


def test_what_is_farther_than_its_reach_does_not_matter():
    correction = random_correction()
    features = np.random.default_rng(3).normal(size=(2 * REACH + 10, 6)).astype(np.float32)
    other = features.copy()
    other[REACH + 1 :] += 1
    np.testing.assert_array_equal(correction.logits(features)[0], correction.logits(other)[0])
    assert not np.allclose(correction.logits(features)[1], correction.logits(other)[1])


@pytest.mark.parametrize("largest", [1e-6, 0.37, 63.4, 63.5, 126.4, 127, 1e5])
def test_matrices_are_rounded_to_eight_bits_once(largest):
    first = random_correction()
    scaled = dataclasses.replace(first, output=first.output / np.abs(first.output).max() * np.float32(largest))
    packed = scaled.packed()
    once = Correction.unpack(packed)
    assert {its.dtype for name, its in packed.items() if name.startswith("out") and its.ndim > 1} == {np.dtype(np.int8)}
    assert np.abs(once.output - scaled.output).max() <= np.abs(scaled.output).max() / 126
    for name, its in Correction.unpack(once.packed()).arrays().items():
        np.testing.assert_array_equal(its, once.arrays()[name])


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
        Labelled(its.features, np.zeros((len(its.features), 3), np.float32), labels)
        for its in utterances
        for labels in [np.array([classes[phone] for phone in its.phones], np.int64)]
    ]
    correction = train_correction(labelled)
    again = train_correction(labelled)
    found = [correction.logits(curved(seed, timed=True)[0].features).argmax(1) for seed in range(900, 910)]
    spoken = [[classes[phone] for phone in curved(seed, timed=True)[1]] for seed in range(900, 910)]
    assert np.mean(np.concatenate(found) == np.concatenate(spoken)) > 0.9
    np.testing.assert_array_equal(correction.output, again.output)


def test_a_correction_that_is_there_goes_on_learning(monkeypatch):
    """It begins where it ended: at a learning rate of nothing it stays, but for another rounding of its projection."""
    classes = {phone: index for index, phone in enumerate(PHONES)}
    spoken = [curved(seed, timed=True)[0] for seed in range(60)]
    first = refine_classifier(classifier(), spoken)
    monkeypatch.setattr(phone_correction, "_RATE", 0.0)
    stayed = refine_classifier(first, spoken)
    new = curved(900, timed=True)[0]
    np.testing.assert_allclose(stayed.logits(new.features), first.logits(new.features), rtol=0.1, atol=0.1)
    assert np.abs(first.correction.logits(new.features)).max() > 1
    monkeypatch.undo()
    monkeypatch.setattr(phone_correction, "_FEWEST_STEPS", 120)
    again = refine_classifier(first, [curved(seed, timed=True, swapped=True)[0] for seed in range(60)])
    swapped = np.array([0, 2, 1])[[classes[phone] for phone in new.phones]]
    assert (again.logits(new.features).argmax(1) == swapped).mean() > 0.9


def test_spans_of_three_frames_are_hidden():
    torch.manual_seed(0)
    hidden = 1 - phone_correction._unhidden(torch.Size((50, 2000))).numpy()
    assert set(np.unique(hidden)) == {0, 1}
    assert hidden.mean() == pytest.approx(1 - 0.99**3, abs=0.004)
    edges = np.diff(np.pad(hidden, ((0, 0), (1, 1))))
    lasted = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
    ends = np.nonzero(edges == -1)[1] == 2000
    assert lasted[~ends].min() == 3


def test_nothing_that_sounds_like_its_text_is_refused():
    silent = Heard(np.zeros((1, 6), np.float32), ("a", "b", "a"), timed=False)
    with pytest.raises(UserError, match="none of 1 utterances sounds like its text"):
        refine_classifier(classifier(), [silent])


def test_a_correction_of_an_earlier_version_is_refused(tmp_path):
    refined = classifier(random_correction())
    refined.save(tmp_path / "c.safetensors")
    arrays, metadata = load_file(tmp_path / "c.safetensors"), {"phones": " ".join(PHONES)}
    save_file(
        {name: its for name, its in arrays.items() if not name.endswith(".exponents")}, tmp_path / "old", metadata
    )
    with pytest.raises(KeyError, match=r"no contraction\.exponents in the correction; refine the codebook again"):
        load_classifier(tmp_path / "old")
