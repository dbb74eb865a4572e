from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from sparq.corpus.readers import read_corpus
from sparq.corpus.recording import Recording
from sparq.errors import UserError


def lay_out(root, files):
    """Write files by relative path; audio is not opened by a reader, so it may be empty."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


LAYOUTS = {
    "ljspeech": (
        {"metadata.csv": "LJ1|Dr. No.|Doctor No.\nLJ2|Yes.|\n", "wavs/LJ1.wav": "", "wavs/LJ2.wav": ""},
        [("LJ1", "wavs/LJ1.wav", "Doctor No.", None), ("LJ2", "wavs/LJ2.wav", "Yes.", None)],
    ),
    "two columns, flac": (
        {"metadata.csv": "\ufeffa.1|Hello, you.\n\nb|Ÿes\r\n", "flac/a.1.flac": "", "flac/b.flac": "", "LICENSE": ""},
        [("a.1", "flac/a.1.flac", "Hello, you.", None), ("b", "flac/b.flac", "Ÿes", None)],
    ),
    "librispeech": (
        {
            "dev/84/1/84-1.trans.txt": "84-1-0 ONE TWO\n84-1-1 THREE\n",
            "dev/84/1/84-1-0.flac": "",
            "dev/84/1/84-1-1.flac": "",
        },
        [("84-1-0", "dev/84/1/84-1-0.flac", "ONE TWO", "84"), ("84-1-1", "dev/84/1/84-1-1.flac", "THREE", "84")],
    ),
    "arctic": (
        {"etc/txt.done.data": '( arctic_a0001 "Author of the \\"trail\\"." )\n', "wav/arctic_a0001.wav": ""},
        [("arctic_a0001", "wav/arctic_a0001.wav", 'Author of the "trail".', None)],
    ),
    "an4": (
        {
            "etc/an4_train.fileids": "an4_clstk/fash/an251-fash-b\n",
            "etc/an4_train.transcription": "<s> YES (MAYBE) </s> (an251-fash-b)\n",
            "wav/an4_clstk/fash/an251-fash-b.flac": "",
        },
        [("an251-fash-b", "wav/an4_clstk/fash/an251-fash-b.flac", "YES (MAYBE)", "fash")],
    ),
    "sidecars": (
        {"x/b.mp3": "", "x/b.txt": "two\nlines\n", "a.ogg": "", "a.txt": "one"},
        [("a", "a.ogg", "one", None), ("x/b", "x/b.mp3", "two lines", None)],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    files, expected = LAYOUTS[layout]
    lay_out(tmp_path, files)
    assert list(read_corpus(tmp_path)) == [
        Recording(name, tmp_path / audio, text, speaker) for name, audio, text, speaker in expected
    ]


def test_jsonl(tmp_path):
    rows = [
        {"audio": "a/1.wav", "text": " hi "},
        {"id": "x", "text": "voiced", "speaker": "joe"},
        {"text": "named by line"},
    ]
    lay_out(tmp_path, {"set.jsonl": "\n".join(map(json.dumps, rows)), "a/1.wav": ""})
    assert list(read_corpus(tmp_path / "set.jsonl")) == [
        Recording("a/1.wav", tmp_path / "a/1.wav", "hi"),
        Recording("x", None, "voiced", "joe"),
        Recording("set-3", None, "named by line"),
    ]


def test_lists_may_be_gzipped(tmp_path):
    for name, line in (("a.jsonl", '{"text": "One."}'), ("a.tsv", "a-1\tOne."), ("a.txt", "One.")):
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(line.encode()))
        assert list(read_corpus(path)) == [Recording("a-1", None, "One.")]


def test_text_to_be_voiced(tmp_path):
    lay_out(tmp_path, {"a.tsv": "LJ1\tHello there.\n", "b.txt": "One.\n\nTwo.\n"})
    assert list(read_corpus(tmp_path / "a.tsv")) == [Recording("LJ1", None, "Hello there.")]
    assert list(read_corpus(tmp_path / "b.txt")) == [Recording("b-1", None, "One."), Recording("b-3", None, "Two.")]


def test_words_are_drawn_into_sentences(tmp_path):
    words = [f"word{i}" for i in range(500)]
    path = lay_out(tmp_path, {"words.txt": "\n".join(words)}) / "words.txt"
    said = [recording.text.split() for recording in read_corpus(path, "words", audio=False)]
    assert sorted(word for sentence in said for word in sentence) == sorted(words)
    assert [word for sentence in said for word in sentence] != words
    assert {len(sentence) for sentence in said[:-1]} == set(range(3, 9))
    assert said == [recording.text.split() for recording in read_corpus(path, "words", audio=False)]
    assert len({recording.id for recording in read_corpus(path, "words", audio=False)}) == len(said)


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "nowhere", r"nowhere: no such file or folder"),
        ({"c/notes.txt": "x"}, "c", r"c: no known corpus layout"),
        ({"metadata.csv": ""}, ".", r"holds no recordings"),
        ({"metadata.csv": "a|b\nc\n", "wavs/a.wav": ""}, ".", r"metadata\.csv, line 2: expected id\|text"),
        ({"metadata.csv": "a|b\n"}, ".", r"metadata\.csv, line 1: there is no audio file .*wavs/a\.wav"),
        ({"metadata.csv": "a|\n", "wavs/a.wav": ""}, ".", r"metadata\.csv, line 1: a has no text"),
        ({"metadata.csv": "a|b\na|c\n", "wavs/a.wav": ""}, ".", r"line 2: a is there twice"),
        ({"1/1-2.trans.txt": "1-2-3 HI\n"}, ".", r"1-2\.trans\.txt, line 1: there is no audio file .*1-2-3\.wav"),
        ({"etc/txt.done.data": "a b\n"}, ".", r"txt\.done\.data, line 1: expected"),
        ({"etc/t.fileids": "a/b\n", "etc/t.transcription": "<s> HI\n"}, ".", r"t\.transcription, line 1: expected"),
        ({"etc/t.fileids": "a/b\n", "etc/t.transcription": "HI (c)\n"}, ".", r"line 1: c is not listed"),
        ({"etc/t.fileids": "a/b\n"}, ".", r"t\.transcription: cannot be read"),
        ({"a.wav": ""}, ".", r"a\.wav without a\.txt beside it: a has no transcript"),
        ({"a.wav": "", "a.txt": ""}, ".", r"a\.txt: a has no text"),
        ({"s.jsonl": '{"text": "a"}\n{"text": \n'}, "s.jsonl", r"s\.jsonl, line 2: not JSON"),
        ({"s.jsonl": '{"audio": "a.wav"}\n'}, "s.jsonl", r"line 1: a\.wav has no transcript .speech alone"),
        ({"s.jsonl": '{"id": "a"}\n'}, "s.jsonl", r'line 1: expected an object with "audio" or "text"'),
        ({"s.jsonl": "3\n"}, "s.jsonl", r"line 1: expected an object"),
        ({"s.jsonl": '{"text": "a", "txt": 1}\n'}, "s.jsonl", r"line 1: unknown key 'txt'"),
        ({"s.jsonl": '{"text": "a", "id": 1}\n'}, "s.jsonl", r"line 1: id is not a string"),
        ({"s.jsonl": '{"text": "a", "audio": "n.wav"}\n'}, "s.jsonl", r"line 1: there is no audio file .*n\.wav"),
        ({"s.tsv": "just a sentence\n"}, "s.tsv", r"s\.tsv, line 1: expected id<TAB>sentence"),
        ({"s.txt": ""}, "s.txt", r"s\.txt: holds no recordings"),
        ({"s.wav": ""}, "s.wav", r"s\.wav: is audio"),
    ],
)
def test_bad_corpora_are_refused_in_one_line(tmp_path, files, path, message):
    lay_out(tmp_path, files)
    with pytest.raises(UserError, match=message) as caught:
        list(read_corpus(tmp_path / path))
    assert "\n" not in str(caught.value)


def test_recordings_without_a_transcript_can_be_left_out_and_counted(tmp_path):
    lay_out(tmp_path, {"a.wav": "", "a.txt": "one", "b.wav": "", "c.wav": "", "c.txt": " \n"})
    left_out = Counter()
    found = list(read_corpus(tmp_path, left_out=left_out))
    assert found == [Recording("a", tmp_path / "a.wav", "one")]
    assert left_out == {"no transcript, or an empty one": 2}
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match="none of 3 recordings has a transcript"):
        list(read_corpus(tmp_path, left_out=Counter()))


def test_a_video_is_a_recording_unless_its_sound_lies_beside_it(tmp_path):
    for name in ("a.wav", "a.mp4", "b.m4a"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).with_suffix(".txt").write_text("the sea")
    assert [recording.audio.name for recording in read_corpus(tmp_path)] == ["a.wav", "b.m4a"]


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8"):
        list(read_corpus(tmp_path / "a.txt"))


def test_speech_alone_needs_no_transcripts_and_text_alone_no_audio(tmp_path):
    lay_out(tmp_path, {"x/b.opus": "", "a.ogg": "", "a.txt": "one", "._a.ogg": ""})
    assert list(read_corpus(tmp_path, text=False)) == [
        Recording("a", tmp_path / "a.ogg", None), Recording("x/b", tmp_path / "x/b.opus", None),
    ]  # fmt: skip
    rows = lay_out(tmp_path / "l", {"s.jsonl": '{"audio": "n.wav", "text": "hi"}\n{"text": "you"}\n'}) / "s.jsonl"
    assert [one.text for one in read_corpus(rows, audio=False)] == ["hi", "you"]
    lay_out(tmp_path / "l", {"s.jsonl": '{"audio": "n.wav"}\n', "n.wav": ""})
    assert [(one.id, one.text) for one in read_corpus(rows, text=False)] == [("n.wav", None)]


def test_half_a_character_is_told_where_it_stands(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    row = '{"audio": "a.wav", "text": "hello \\ud83d there"}\n'
    (tmp_path / "list.jsonl").write_text(row, encoding="utf-8")
    with pytest.raises(UserError, match=r"list\.jsonl, line 1: text 'hello .*' holds half a character"):
        list(read_corpus(tmp_path / "list.jsonl"))


def test_a_list_that_is_damaged_inside_is_named(tmp_path):
    packed = bytearray(gzip.compress("\n".join(str(7919 * n) for n in range(20_000)).encode()))
    packed[2000:2100] = bytes(100)
    (tmp_path / "text.txt.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"text\.txt\.gz: "):
        list(read_corpus(tmp_path / "text.txt.gz"))


def test_parts_that_number_alike_and_links_to_folders(tmp_path):
    names = [f"{part}/{n}" for part in ("a", "b") for n in (1, 2)]
    lay_out(tmp_path / "disk", {f"{name}{end}": name for name in names for end in (".wav", ".txt")})
    (tmp_path / "mine").mkdir()
    for part in ("a", "b"):
        (tmp_path / "mine" / part).symlink_to(tmp_path / "disk" / part)
    (tmp_path / "disk" / "b" / "round").symlink_to(tmp_path / "disk")  # a walk that never ends
    (tmp_path / "disk" / ".old").mkdir()
    (tmp_path / "disk" / ".old" / "3.wav").touch()
    found = [one.id for one in read_corpus(tmp_path / "mine")]
    assert found[:2] == ["a/1", "a/2"]
    assert {"b/1", "b/2"} <= set(found)
    told = [(one.id, one.text) for one in read_corpus(tmp_path / "disk", parts=["b", "a", "b"])]
    assert [pair for pair in told if "round" not in pair[0]] == [
        ("1", "b/1"),
        ("2", "b/2"),
        ("a/1", "a/1"),
        ("a/2", "a/2"),
    ]
    lists = lay_out(tmp_path / "lists", {"x/metadata.csv": "1|one\n", "y/metadata.csv": "1|two\n2|three\n2|four\n"})
    with pytest.raises(UserError, match="line 3: 2 is there twice"):
        list(read_corpus(lists, parts=["x", "y"], audio=False))
