from __future__ import annotations

import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.speech.audio import RATE, SUFFIXES, check_waveform, load_audio, read_header, save_audio, stream_audio


def tone(rate, seconds=1.0, channels=1, hertz=440.0):
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (16000, 1), (44100, 1)])
def test_any_format_rate_and_channels_become_the_same_tone(tmp_path, suffix, rate, channels):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate, channels=channels), rate)
    wave = load_audio(path)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert len(wave) == pytest.approx(RATE, abs=RATE * 0.02)
    spectrum = np.abs(np.fft.rfft(wave[2000:14000] * np.hanning(12000)))
    assert spectrum.argmax() * RATE / 12000 == pytest.approx(440, abs=2)
    assert np.abs(wave[2000:14000]).max() == pytest.approx(0.3, abs=0.02)


def test_channels_are_averaged(tmp_path):
    both = np.stack([np.full(1600, 0.5), np.full(1600, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.wav", both, RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), 0.125, atol=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_of_channels_that_cancel_each_other_the_loudest_is_heard(tmp_path, binary):
    wave = tone(RATE)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([0.5 * wave, -0.501 * wave], axis=1), RATE, subtype="FLOAT")
    heard = load_audio((tmp_path / "a.wav").open("rb") if binary else tmp_path / "a.wav")
    np.testing.assert_allclose(heard, -0.501 * wave, atol=1e-6)
    soundfile.write(tmp_path / "quiet.wav", np.stack([wave, -0.8 * wave], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "quiet.wav"), 0.1 * wave, atol=1e-6)  # not for good
    soundfile.write(tmp_path / "silent.wav", np.zeros((100, 2)), RATE)
    assert not load_audio(tmp_path / "silent.wav").any()


def test_reading_in_blocks_is_reading_at_once(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 70000), 22050)
    whole = load_audio(tmp_path / "a.wav")
    monkeypatch.setattr("sparq.speech.audio._BLOCK_SECONDS", 1)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), whole, atol=1e-5)


def test_a_binary_file_that_cannot_seek(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(RATE), RATE)

    class Pipe:
        name = "<stdin>"

        def read(self):
            return (tmp_path / "a.flac").read_bytes()

    np.testing.assert_array_equal(load_audio(Pipe()), load_audio(tmp_path / "a.flac"))


@pytest.mark.parametrize("given", [None, 3, np.zeros(9, np.float32)])
def test_what_is_neither_a_path_nor_a_file(given):
    with pytest.raises(UserError, match=rf"recording: {type(given).__name__} \(expected a file"):
        load_audio(given)


def test_a_pipe_with_a_name(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(RATE), RATE)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / "a.flac").read_bytes()))
    assert not read_header(tmp_path / "pipe")[0]  # before anything is in it, which would be lost
    writer.start()
    np.testing.assert_array_equal(load_audio(tmp_path / "pipe"), load_audio(tmp_path / "a.flac"))
    writer.join()


def test_a_header_without_a_length_is_not_truncation():
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(RATE), RATE, format="WAV")
    data = bytearray(buffer.getvalue())
    at = data.find(b"data")
    data[at + 4 : at + 8] = b"\xff" * 4
    assert len(load_audio(io.BytesIO(bytes(data)))) == RATE


def test_an_mp3_inside_a_wav_may_not_know_its_length_to_the_packet(tmp_path):
    constant = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.5}
    with soundfile.SoundFile(tmp_path / "a.mp3", "w", RATE, 1, **constant) as file:
        file.write(tone(RATE, 2.0))
    data = (tmp_path / "a.mp3").read_bytes()
    packets = data[data.index(data[:3], 4) : -100]  # without the first, which tells the length, and a bit of the last
    layout = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 576, 0, 12, 1, 2, 576, 1, 0)
    chunks = [b"fmt ", layout, b"fact", struct.pack("<I", 2 * RATE), b"data", packets + b"\0" * (len(packets) % 2)]
    body = b"WAVE" + b"".join(n + struct.pack("<I", len(c)) + c for n, c in zip(chunks[::2], chunks[1::2], strict=True))
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert file.frames > len(file.read())
    assert len(load_audio(tmp_path / "a.wav")) == pytest.approx(2 * RATE, abs=2 * 1152)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, kept):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=rf"cut\.{suffix}: (truncated|not audio, or damaged)"):
        load_audio(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_text("hello " * 50), "not audio"),
        (lambda p: p.write_bytes(b""), "not audio"),
        (lambda p: soundfile.write(p, np.zeros(0), RATE), "no samples"),
        (lambda p: soundfile.write(p, np.array([0.0, np.nan]), RATE, subtype="FLOAT"), "not a finite number"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, make, message):
    path = tmp_path / "bad.wav"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        load_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello " * 50, np.random.default_rng(0).bytes(5000)])
def test_an_mp3_of_something_else_is_not_audio_in_one_line(tmp_path, capfd, content):
    (tmp_path / "bad.mp3").write_bytes(content)
    assert not read_header(tmp_path / "bad.mp3")[0]
    with pytest.raises(UserError, match=r"bad\.mp3: not audio, or damaged \(nothing in it can be decoded\)"):
        load_audio(tmp_path / "bad.mp3")
    assert capfd.readouterr().err == ""


def test_a_damaged_mp3_leaves_standard_error_to_others(tmp_path, capfd):
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.mp3", random.normal(0, 0.1, 3 * RATE), RATE)
    data = bytearray((tmp_path / "a.mp3").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = random.bytes(2000)
    (tmp_path / "a.mp3").write_bytes(data)
    with pytest.raises(UserError, match=r"truncated|damaged"):
        load_audio(tmp_path / "a.mp3")
    os.write(2, b"others\n")
    assert capfd.readouterr().err == "others\n"


def test_silence_is_audio(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert not load_audio(tmp_path / "a.wav").any()


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 5000), st.integers(0, 2**31))
def test_a_saved_wav_comes_back(tmp_path_factory, samples, seed):
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    wave = np.random.default_rng(seed).uniform(-0.99, 0.99, samples).astype(np.float32)
    save_audio(path, wave)
    np.testing.assert_allclose(load_audio(path), wave, atol=1 / 32768)
    assert [file.name for file in path.parent.iterdir()] == ["a.wav"]


def test_saving_clips_instead_of_wrapping(tmp_path):
    save_audio(tmp_path / "a.wav", np.array([2.0, -2.0], np.float32))
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), [1.0, -1.0], atol=1e-4)


@pytest.mark.parametrize("name", ["a.xyz", "a", "missing/a.wav"])
def test_bad_names_to_save_leave_nothing(tmp_path, name):
    with pytest.raises(UserError, match=name.split("/")[-1]):
        save_audio(tmp_path / name, np.zeros(10, np.float32))
    assert not list(tmp_path.iterdir())


def test_a_waveform_has_one_channel():
    with pytest.raises(UserError, match=r"one channel"):
        check_waveform(np.zeros((10, 2)), "x")


@pytest.mark.parametrize("kind", ["int16", "int32", "int8"])
def test_integers_are_shares_of_their_full_scale(kind):
    limits = np.iinfo(kind)
    made = check_waveform(np.array([limits.min, 0, limits.max // 2 + 1], kind))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, [-1, 0, 0.5])


def test_unsigned_integers_are_refused():
    with pytest.raises(UserError, match=r"talk: uint8 samples \(expected floating-point numbers or signed integers\)"):
        check_waveform(np.full(9, 128, np.uint8), "talk")


def test_a_stream_is_heard_chunk_by_chunk(tmp_path):
    random = np.random.default_rng(0)
    chunks = [random.uniform(-1.2, 1.2, size).astype(np.float32) for size in (100, 1, 999)]
    heard = []

    def coming():
        for chunk in chunks:
            yield chunk
            heard.append(len(load_audio(tmp_path / "a.wav")))  # what is there before the next is made

    assert stream_audio(tmp_path / "a.wav", coming()) == 1100
    assert heard == [100, 101, 1100]
    save_audio(tmp_path / "b.wav", np.concatenate(chunks))
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), load_audio(tmp_path / "b.wav"), atol=1e-4)
    with pytest.raises(UserError, match=r"expected .wav, .flac, .ogg or .mp3 at the end"):
        stream_audio(tmp_path / "a.xyz", chunks)
    with pytest.raises(UserError, match="there is no folder"):
        stream_audio(tmp_path / "nowhere" / "a.wav", chunks)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        stream_audio(tmp_path / "folder.wav", chunks)


def test_a_stream_of_open_length_is_a_wav_that_is_read_again():
    chunks = [np.array([0.0, 0.5, -0.5, 2.0, -2.0], np.float32), np.linspace(0, 1, 1595, dtype=np.float32)]
    file, raw = io.BytesIO(), io.BytesIO()
    assert stream_audio(file, chunks) == stream_audio(raw, chunks, raw=True) == 1600
    assert file.getvalue()[44:] == raw.getvalue()
    assert np.frombuffer(raw.getvalue(), "<i2")[:5].tolist() == [0, 16384, -16384, 32767, -32767]
    file.seek(0)
    np.testing.assert_allclose(load_audio(file)[:5], [0, 0.5, -0.5, 1, -1], atol=1e-4)


@pytest.mark.parametrize(("suffix", "written"), [
    ("wav", {}), ("wav", {"subtype": "GSM610"}), ("flac", {}), ("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"}), ("mp3", {}),
    ("sph", {"format": "NIST"}), ("aiff", {}), ("au", {}),
])  # fmt: skip
def test_a_part_of_a_file_is_that_part_of_the_whole(tmp_path, suffix, written):
    assert f".{suffix}" in SUFFIXES
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 3 * RATE), RATE, **written)
    whole = load_audio(path)
    np.testing.assert_allclose(load_audio(path, start=1.25, seconds=0.5), whole[20000:28000], atol=1e-6)
    np.testing.assert_allclose(load_audio(path, start=2.5), whole[40000:], atol=1e-6)


def test_a_part_at_another_rate_and_of_one_channel(tmp_path):
    path = tmp_path / "two.wav"
    both = tone(48000, 2.0, 2)
    both[:, 1] *= -0.5
    soundfile.write(path, both, 48000, subtype="FLOAT")
    part = load_audio(path, start=0.5, seconds=1.0, channel=1)
    assert len(part) == RATE
    np.testing.assert_allclose(part[500:-500], load_audio(path, channel=1)[8500:23500], atol=1e-3)
    np.testing.assert_allclose(part, -0.5 * load_audio(path, start=0.5, seconds=1.0, channel=0), atol=1e-6)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"start": 4.0}, r"a\.wav: ends after 2\.00 s, before 4\.00 s"),
        ({"start": 1.5, "seconds": 0.6}, r"a\.wav: ends after 2\.00 s, before what is to be read of it"),
        ({"channel": 1}, r"a\.wav: has no channel 1 .there are 1"),
    ],
)
def test_a_part_that_is_not_there(tmp_path, part, message):
    soundfile.write(tmp_path / "a.wav", tone(RATE, 2.0), RATE)
    with pytest.raises(UserError, match=message):
        load_audio(tmp_path / "a.wav", **part)
    assert len(load_audio(tmp_path / "a.wav", start=1.5, seconds=0.52)) == RATE // 2  # lists of segments round


def test_a_part_behind_the_end_of_what_cannot_be_sought_in(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(8000, 2.0), 8000, subtype="GSM610")
    with pytest.raises(UserError, match=r"a\.wav: ends after 2\.\d\d s, before 4\.00 s"):
        load_audio(tmp_path / "a.wav", start=4.0)
