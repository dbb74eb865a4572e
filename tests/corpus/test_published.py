"""The corpora of the paper: what is read of miniatures of their folders, beside what Lhotse's recipes read of them."""

from __future__ import annotations

import gzip
import itertools

import miniature
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparq.config import SourceConfig
from sparq.config.corpus import LAYOUTS
from sparq.corpus.manifests import prepared
from sparq.corpus.published import LONGEST_SECONDS, join_segments
from sparq.corpus.readers import READERS, find_layout, read_corpus
from sparq.errors import UserError

MADE = {
    "librispeech": (miniature.librispeech, ("train-clean-100",)),
    "libritts": (miniature.libritts, ("train-clean-100",)),
    "mls": (miniature.mls, ("dev",)),
    "vctk": (miniature.vctk, ()),
    "librilight": (miniature.librilight, ("small",)),
    "ljspeech": (miniature.ljspeech, ()),
}


def told(recording):
    return recording.id, recording.audio.name, recording.text, recording.speaker


def test_every_layout_that_a_recipe_may_name_has_its_reader():
    assert set(LAYOUTS) == set(READERS)
    with pytest.raises(UserError, match=r"layout: libritss .did you mean libritts"):
        SourceConfig(kind="audio", path="x", layout="libritss")


@pytest.mark.parametrize("name", MADE)
def test_layouts_are_found_by_looking_at_the_whole_and_at_a_part(tmp_path, name):
    make, parts = MADE[name]
    make(tmp_path)
    text = name != "librilight"
    assert find_layout(tmp_path) == name
    whole = list(read_corpus(tmp_path, text=text))
    assert list(read_corpus(tmp_path, name, text=text)) == whole
    if parts:
        part = list(read_corpus(tmp_path, parts=parts, text=text))
        assert part
        assert part == list(read_corpus(tmp_path / parts[0], text=text))
        assert {one.audio for one in part} <= {one.audio for one in whole}


def test_what_is_read_of_each(tmp_path):
    first = {}
    for name, (make, _) in MADE.items():
        found = list(read_corpus(make(tmp_path / name), text=name != "librilight"))
        first[name] = (len(found), *told(found[0]))
    assert first == {
        "librispeech": (3, "84-121-0000", "84-121-0000.flac", "THE TRAIN LEAVES AT HALF PAST NINE", "84"),
        "libritts": (3, "14_208_000000_000000", "14_208_000000_000000.wav", f"Number {miniature.TEXTS[0]}.", "14"),
        "mls": (9, "4800_10003_000100", "4800_10003_000100.opus", f"{miniature.TEXTS[0]} in dev", "4800"),
        "vctk": (3, "p225_001", "p225_001_mic1.flac", "The train leaves at half past nine.", "p225"),
        "librilight": (2, "small/100/a_book_64kb_mp3/chapter_small-0", "chapter_small.flac", None, "100"),
        "ljspeech": (3, "LJ001-0000", "LJ001-0000.wav", f"Doctor {miniature.TEXTS[0]}.", None),
    }


def test_vctk_of_both_versions(tmp_path):
    new = list(read_corpus(miniature.vctk(tmp_path / "new")))
    assert [one.id for one in new] == ["p225_001", "p225_002", "p362_002"]  # as published, p315 and p362 lack some
    new[0].audio.unlink()
    assert next(read_corpus(tmp_path / "new")).audio.name == "p225_001_mic2.flac"
    (tmp_path / "new" / "wav48_silence_trimmed" / "p225" / "p225_001_mic2.flac").unlink()
    with pytest.raises(UserError, match=r"p225_001\.txt: there is no audio file .*p225_001_mic1\.wav"):
        list(read_corpus(tmp_path / "new"))
    old = list(read_corpus(miniature.old_vctk(tmp_path / "old")))
    assert told(old[1]) == ("p225_002", "p225_002.wav", "She would like a garden.", "p225")


def test_librilight_is_cut_where_nobody_speaks(tmp_path):
    found = list(read_corpus(miniature.librilight(tmp_path, seconds=45), text=False))
    mine = [(one.start, one.start + one.seconds) for one in found if one.speaker == "204"]
    assert mine == [pytest.approx(pair) for pair in ((0.1, 1.5), (2.0, 16.3), (16.3, 30.6), (30.6, 44.9))]


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.01, 45)), max_size=30))
def test_joined_segments_hold_all_speech_in_order_and_none_is_too_long(pauses_and_lengths):
    segments, now = [], 0.0
    for pause, length in pauses_and_lengths:
        segments.append((now + pause, now + pause + length))
        now += pause + length
    joined = list(join_segments(segments))
    assert all(end - start <= LONGEST_SECONDS + 1e-6 for start, end in joined)
    assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(joined))
    for start, end in segments:
        covered = sum(max(0.0, min(end, b) - max(start, a)) for a, b in joined)
        assert covered == pytest.approx(end - start, abs=1e-6)
    ends = dict(segments)  # no two neighbours could have been one
    assert all(ends[b] - a > LONGEST_SECONDS for (a, _), (b, _) in itertools.pairwise(joined) if b in ends)


@pytest.fixture
def lhotse(tmp_path, monkeypatch):
    """Lhotse, with a cache of its own."""
    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("lhotse")


@pytest.mark.parametrize(
    ("make", "inside", "parts"),
    [
        (miniature.librispeech, "", ()),
        (miniature.libritts, "", ("train-clean-100",)),
        (miniature.mls, "mls_english_opus", ()),
        (miniature.old_vctk, "", ()),
    ],
)
def test_lhotse_reads_the_same(tmp_path, lhotse, make, inside, parts):
    """Parity with a second implementation, through our reader of its manifests."""
    make(tmp_path / "corpus" / inside)
    name = "vctk" if make is miniature.old_vctk else make.__name__
    ours = sorted(told(one) for one in read_corpus(tmp_path / "corpus" / inside, parts=parts))
    theirs = list(read_corpus(tmp_path / "corpus", f"lhotse:{name}", parts))
    assert sorted(map(told, theirs)) == ours
    assert all((one.start, one.seconds, one.channel) == (0.0, None, None) for one in theirs)


def test_lhotse_finds_the_same_speech_in_librilight(tmp_path, lhotse):
    """Its segments are as they are listed; ours are joined, with the pauses between them."""
    miniature.librilight(tmp_path / "corpus", ("small", "medium", "large"), seconds=25)  # it wants all three
    ours = list(read_corpus(tmp_path / "corpus", text=False))
    theirs = list(read_corpus(tmp_path / "corpus", "lhotse:librilight", text=False))
    assert len(theirs) == 18
    for one in theirs:
        end = one.start + one.seconds
        same = [o for o in ours if (o.audio, o.speaker) == (one.audio, one.speaker)]
        inside = sum(max(0.0, min(end, o.start + o.seconds) - max(one.start, o.start)) for o in same)
        assert inside == pytest.approx(one.seconds, abs=1e-4)


def test_a_recipe_of_lhotse_runs_once_and_says_in_one_line_what_it_cannot_do(tmp_path, lhotse, monkeypatch):
    root = miniature.ljspeech(tmp_path / "corpus")
    first = prepared(root, "ljspeech")
    stamps = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    assert prepared(root, "ljspeech") == first
    assert stamps == {file: file.stat().st_mtime_ns for file in first.iterdir()}
    with pytest.raises(UserError, match=r"lhotse:ljspech: Lhotse has no such recipe .did you mean ljspeech"):
        prepared(root, "ljspech")
    with pytest.raises(UserError, match=r"Lhotse's recipe timit cannot read it .\w+") as caught:
        prepared(root, "timit")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"corpus: Lhotse's recipe mls found nothing in it"):
        prepared(root, "mls")
    assert [folder.name.partition("-")[0] for folder in (tmp_path / "cache" / "lhotse").iterdir()] == ["ljspeech"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lhotse:aishell: needs Lhotse; run: pip install 'sparq.corpora.'"):
        prepared(root, "aishell")


def test_the_text_corpus_of_librispeech(tmp_path):
    path = tmp_path / "librispeech-lm-norm.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write("A\n\n" + "".join(f"LINE NUMBER {word}\n" for word in ("ONE", "TWO", "THREE")))
    found = list(read_corpus(path, audio=False))
    assert [(one.id, one.text) for one in found] == [
        ("librispeech-lm-norm-1", "A"), ("librispeech-lm-norm-3", "LINE NUMBER ONE"),
        ("librispeech-lm-norm-4", "LINE NUMBER TWO"), ("librispeech-lm-norm-5", "LINE NUMBER THREE"),
    ]  # fmt: skip
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"norm\.txt\.gz: cannot be read .Compressed file ended"):
        list(read_corpus(path))
    path.write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"norm\.txt\.gz: cannot be read"):
        list(read_corpus(path))


@pytest.mark.parametrize(
    ("make", "harm", "message"),
    [
        (miniature.librispeech, {"audio": "84-121-0001.flac"}, r"84-121\.trans\.txt, line 2: there is no audio file"),
        (miniature.libritts, {"14_208.trans.tsv": "a\tb\n"}, r"14_208\.trans\.tsv, line 1: expected id<TAB>text<TAB>norm"),
        (miniature.mls, {"transcripts.txt": "1_2_3 no tab\n"}, r"transcripts\.txt, line 1: expected speaker_book_number"),
        (miniature.mls, {"audio": "4800_10003_000002.opus"}, r"train/transcripts\.txt, line 3: there is no audio file"),
        (miniature.vctk, {"p225_001.txt": "\n"}, r"p225_001\.txt: p225_001 has no text"),
        (miniature.librilight, {"chapter_small.json": "{}"}, r"chapter_small\.json: missing, or without speaker"),
        (miniature.librilight, {}, r"chapter_small\.json: small/100/.*-0 has no transcript .speech alone is of kind audio-only"),
    ],
)  # fmt: skip
def test_harm_is_told_in_one_line(tmp_path, make, harm, message):
    make(tmp_path)
    layout = find_layout(tmp_path)
    for name, content in harm.items():
        for file in tmp_path.rglob(content if name == "audio" else name):
            file.unlink() if name == "audio" else file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_corpus(tmp_path, layout))
    assert "\n" not in str(caught.value)


def test_a_part_that_is_not_there(tmp_path):
    miniature.librispeech(tmp_path)
    with pytest.raises(UserError, match=r"there is no part 'train-clean-10' in it .did you mean train-clean-100"):
        list(read_corpus(tmp_path, "librispeech", ["train-clean-10"]))
