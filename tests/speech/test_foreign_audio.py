"""Sound that ffmpeg decodes; what ffmpeg is not needed for is tested with a script in its place."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from sparq.errors import UserError
from sparq.speech.audio import RATE, load_audio, read_header

with_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture
def stereo(tmp_path):
    """Three seconds of noise, two channels."""
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, (3 * RATE, 2)), RATE)
    return path


@pytest.fixture
def instead_of_ffmpeg(tmp_path, monkeypatch):
    """Put a shell script in the place of ffmpeg."""

    def put(script):
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr("shutil.which", lambda name: str(program))
        (tmp_path / "a.m4a").write_bytes(b"")
        return tmp_path / "a.m4a"

    return put


def converted(source, name, *options):
    path = source.with_name(name)
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, *options, path], check=True, stdin=subprocess.DEVNULL)
    return path


@with_ffmpeg
@pytest.mark.parametrize("part", [{}, {"start": 1.25, "seconds": 0.5}, {"start": 2.5, "channel": 1}])
def test_what_is_without_loss_in_a_video_is_that_of_the_wav(stereo, part, monkeypatch):
    monkeypatch.setattr("sparq.speech.audio._BLOCK_SECONDS", 1)
    path = converted(stereo, "a.MKV", "-c:a", "flac", "-sample_fmt", "s16", "-f", "matroska")
    np.testing.assert_allclose(load_audio(path, **part), load_audio(stereo, **part), atol=1e-6)


@with_ffmpeg
def test_of_channels_that_cancel_each_other_the_loudest_is_heard(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([0.5 * wave, -0.501 * wave], axis=1), RATE)
    heard = load_audio(converted(tmp_path / "a.wav", "a.mka", "-c:a", "flac"))
    np.testing.assert_allclose(heard, -0.501 * wave, atol=1e-4)


@with_ffmpeg
def test_m4a_is_read_and_its_header_told(stereo):
    path = converted(stereo, "a.m4a", "-ar", "44100")
    assert len(load_audio(path)) == pytest.approx(3 * RATE, abs=2048)
    rate, seconds = read_header(path)
    assert rate == 44100
    assert seconds == pytest.approx(3, abs=0.1)


@with_ffmpeg
def test_what_is_wrong_is_one_line(stereo, tmp_path, capfd):
    whole = converted(stereo, "whole.m4a", "-movflags", "+faststart")
    (tmp_path / "cut.m4a").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "text.m4a").write_text("#EXTM3U\nhttp://localhost/a.ts\n" * 9)
    (tmp_path / "empty.m4a").write_bytes(b"")
    for name, part, told in (
        ("cut.m4a", {}, r"truncated or damaged \("),
        ("text.m4a", {}, "not audio, or damaged"),
        ("empty.m4a", {}, "not audio, or damaged"),
        ("whole.m4a", {"start": 4.0}, r"ends after 3\.\d\d s, before 4\.00 s"),
        ("whole.m4a", {"start": 2.5, "seconds": 1.0}, r"ends after 3\.\d\d s, before what is to be read"),
    ):
        with pytest.raises(UserError, match=rf"{name}: {told}") as caught:
            load_audio(tmp_path / name, **part)
        assert "\n" not in str(caught.value)
    assert len(load_audio(tmp_path / "cut.m4a", seconds=0.5)) == RATE // 2  # before it breaks off
    assert read_header(tmp_path / "text.m4a") == (0, 0.0)
    assert capfd.readouterr() == ("", "")


def test_without_ffmpeg_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    (tmp_path / "a.m4a").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.m4a: \.m4a needs ffmpeg, .*convert it to \.wav or \.flac"):
        load_audio(tmp_path / "a.m4a")
    assert read_header(tmp_path / "a.m4a") == (0, 0.0)


def test_samples_come_through_a_pipe(stereo, instead_of_ffmpeg):
    data, rate = soundfile.read(stereo)
    soundfile.write(stereo.with_name("a.au"), data, rate, subtype="FLOAT")
    path = instead_of_ffmpeg(f"cat {stereo.with_name('a.au')}")
    np.testing.assert_allclose(load_audio(path), load_audio(stereo), atol=1e-6)
    np.testing.assert_allclose(load_audio(path, start=1.0, seconds=0.5), load_audio(stereo)[16000:24000], atol=1e-6)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo '[mov @ 0x1] moov atom not found' >&2; exit 1", r"not audio, or damaged \(moov atom not found\)"),
        ("echo \"Stream map '0:a:0' matches no streams.\" >&2; exit 1", "there is no sound in it"),
        ("cat {au}; echo 'a.m4a: File ended prematurely' >&2", r"truncated or damaged \(file ended prematurely\)"),
        ("cat {au}; exit 1", r"truncated or damaged \(ffmpeg does not say why\)"),
    ],
)
def test_what_ffmpeg_says_is_told(stereo, instead_of_ffmpeg, script, told):
    data, rate = soundfile.read(stereo)
    soundfile.write(stereo.with_name("a.au"), data, rate, subtype="FLOAT")
    path = instead_of_ffmpeg(script.replace("{au}", str(stereo.with_name("a.au"))))
    with pytest.raises(UserError, match=rf"a\.m4a: .*{told}"):
        load_audio(path)
