from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances_argmin

from sparq.artifacts import ArtifactMismatchError
from sparq.errors import UserError
from sparq.speech.units import Codebook, UnitExtractor, fit_codebook, merge_repeats

ENCODER = SimpleNamespace(fingerprint="abc", name="moonshine-tiny", layers=(5,), dimension=6)


def clusters(seed=0, k=5):
    random = np.random.default_rng(seed)
    centres = random.normal(0, 10, (k, 6))
    return (centres[random.integers(0, k, 2000)] + random.normal(0, 0.1, (2000, 6))).astype(np.float32), centres


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(0, 9000), st.integers(0, 2**31))
def test_assignment_is_the_nearest_centroid(k, frames, seed):
    random = np.random.default_rng(seed)
    features = random.normal(size=(frames, 4)).astype(np.float32)
    book = Codebook(random.normal(size=(k, 4)).astype(np.float32), "e", "n", (0,))
    expected = pairwise_distances_argmin(features, book.centroids) if frames else np.zeros(0)
    assert np.mean(book.assign(features) != expected) <= 1e-3 if frames else book.assign(features).size == 0


def test_fitting_finds_clusters_and_is_reproducible():
    features, centres = clusters()
    book = fit_codebook([features[:900], features[900:]], ENCODER, k=5, seed=3)
    found = {tuple(np.round(c)) for c in book.centroids}
    assert found == {tuple(np.round(c)) for c in centres.astype(np.float32)} or all(
        np.linalg.norm(book.centroids - c, axis=1).min() < 0.1 for c in centres
    )
    again = fit_codebook([features[:900], features[900:]], ENCODER, k=5, seed=3)
    assert again.fingerprint == book.fingerprint
    assert fit_codebook([features], ENCODER, k=4, seed=3).fingerprint != book.fingerprint


def test_too_few_frames_to_fit():
    with pytest.raises(UserError, match="k = 200"):
        fit_codebook([np.zeros((10, 6), np.float32)], ENCODER)
    with pytest.raises(UserError, match="k = 0"):
        fit_codebook([np.zeros((10, 6), np.float32)], ENCODER, k=0)


def test_save_and_load(tmp_path):
    book = fit_codebook([clusters()[0]], ENCODER, k=5)
    book.save(tmp_path / "codebook")
    loaded = Codebook.load(tmp_path / "codebook")
    np.testing.assert_array_equal(loaded.centroids, book.centroids)
    assert (loaded.encoder, loaded.encoder_name, loaded.layers, loaded.size) == ("abc", "moonshine-tiny", (5,), 5)
    assert loaded.fingerprint == book.fingerprint


def test_damaged_folders_are_named(tmp_path):
    book = fit_codebook([clusters()[0]], ENCODER, k=5)
    book.save(tmp_path / "codebook")
    weights = tmp_path / "codebook" / "centroids.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\x7f")
    with pytest.raises(ArtifactMismatchError, match="manifest"):
        Codebook.load(tmp_path / "codebook")
    weights.write_bytes(whole[:50])
    with pytest.raises(UserError, match="damaged codebook"):
        Codebook.load(tmp_path / "codebook")
    manifest = tmp_path / "codebook" / "sparq.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "kind": "vocoder"}))
    with pytest.raises(UserError, match="holds a vocoder"):
        Codebook.load(tmp_path / "codebook")


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40))
def test_merged_runs_repeat_to_the_original(units):
    merged, durations = merge_repeats(units)
    assert list(np.repeat(merged, durations)) == units
    assert [(u, len(list(g))) for u, g in itertools.groupby(units)] == list(zip(merged, durations, strict=True))


def test_parts_that_do_not_belong_together():
    book = fit_codebook([clusters()[0]], ENCODER, k=5)
    with pytest.raises(ArtifactMismatchError, match=r"abc.*other"):
        UnitExtractor(SimpleNamespace(fingerprint="other"), book)
    with pytest.raises(UserError, match="do not fit"):
        book.assign(np.zeros((3, 7), np.float32))


def test_extraction_gives_raw_units():
    book = fit_codebook([clusters()[0]], ENCODER, k=5)
    features = np.repeat(book.centroids[[3, 1]], [2, 3], axis=0)
    encoder = SimpleNamespace(fingerprint="abc", encode=lambda waves: [features for _ in waves])
    (first, _) = UnitExtractor(encoder, book).extract([np.zeros(1), np.zeros(1)])
    assert first.tolist() == [3, 3, 1, 1, 1]
    assert first.dtype == np.int64
