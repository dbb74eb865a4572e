from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.config import AugmentationConfig, CorpusConfig, SourceConfig
from sparq.corpus.plan import plan_corpus
from sparq.corpus.sentences import LONGEST_PHRASE
from sparq.errors import UserError
from sparq.language.writing import normalise_text
from sparq.speech.voices import members

WORDS = ["yes", "no", "the", "old", "house", "stood", "empty", "on", "a", "hill"]


def write(path: Path, sentences: list[str]) -> Path:
    path.write_text("".join(f"{i}\t{sentence}\n" for i, sentence in enumerate(sentences)))
    return path


def text(path: Path, **more) -> SourceConfig:
    return SourceConfig(kind="text", path=str(path), **more)


def key(text: str) -> str:
    return normalise_text(text, "letters")


# Few and short words, so that sources share sentences and phrases of one are sentences of another.
sentence = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
dressed = st.builds(lambda s, how: {"as": s, "cap": s.capitalize() + ".", "shout": s.upper() + "!"}[how],
                    sentence, st.sampled_from(["as", "cap", "shout"]))  # fmt: skip
source = st.tuples(st.lists(dressed, min_size=3, max_size=25), st.integers(0, 3), st.integers(0, 30),
                   st.sampled_from(["anywhere", "end"]))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(source, min_size=1, max_size=3), st.integers(0, 5))
def test_what_is_held_out_anywhere_is_trained_on_nowhere(sources, seed):
    with tempfile.TemporaryDirectory() as folder:
        configs = tuple(
            text(
                write(Path(folder) / f"s{i}.tsv", sentences),
                held_out=min(held_out, len({key(s) for s in sentences})),
                phrases=phrases,
                held_out_from=where,
            )
            for i, (sentences, held_out, phrases, where) in enumerate(sources)
        )
        config = CorpusConfig(sources=configs, seed=seed)
        plan = plan_corpus(config)
        held = {key(item.text) for item in plan.items if item.split == "held_out"}
        assert not held & {key(item.text) for item in plan.items if item.split == "train"}
        for i, part in enumerate(configs):
            kept = [key(x.text) for x in plan.items if x.source == f"s{i}" and x.split == "held_out"]
            assert len(kept) == len(set(kept)) == part.held_out
        ids = [item.id for item in plan.items]
        assert len(set(ids)) == len(ids)
        assert all(len(item.text.split()) <= LONGEST_PHRASE for item in plan.items if item.source.endswith("/phrases"))
        sentences = sum(len(s) for s, *_ in sources)
        whole = [item for item in plan.items if not item.source.endswith("/phrases")]
        assert len(whole) + sum(plan.left_out.values()) == sentences
        again = plan_corpus(config)
        assert (again, again.fingerprint) == (plan, plan.fingerprint)
        other = plan_corpus(dataclasses.replace(config, seed=seed + 1))
        assert other.fingerprint != plan.fingerprint


@pytest.fixture
def two(tmp_path):
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=8)) + f" number {i}." for i in range(300)]
    return write(tmp_path / "big.tsv", lines[:240]), write(tmp_path / "small.tsv", lines[240:])


def test_sources_are_mixed_evenly(two):
    plan = plan_corpus(CorpusConfig(sources=(text(two[0], held_out=24), text(two[1]))))
    for part in (plan.items[:100], plan.items[100:200], plan.items[200:]):
        assert 18 <= sum(item.source == "small" for item in part) <= 22
        assert 7 <= sum(item.split == "held_out" for item in part) <= 9
    fitting = plan.to_fit(50)
    assert len(fitting) == 50
    assert all(item.split == "train" for item in fitting)
    assert 9 <= sum(item.source == "small" for item in fitting) <= 12


def test_limits(two):
    plan = plan_corpus(CorpusConfig(sources=(text(two[0], held_out=5, limit=40), text(two[1])), limit=50))
    assert len(plan.items) == 50
    assert plan.left_out == {"limit": 250}
    assert {(item.source, item.split) for item in plan.items} == {
        ("big", "train"), ("big", "held_out"), ("small", "train"),
    }  # fmt: skip


def test_the_end_is_held_out(two):
    plan = plan_corpus(CorpusConfig(sources=(text(two[1], held_out=7, held_out_from="end"),)))
    held = {item.id for item in plan.items if item.split == "held_out"}
    assert held == {f"small/{i}" for i in range(53, 60)}


def test_speeds_and_seeds_vary_by_utterance_and_kept_audio_is_whole_sentences(two):
    source = text(two[0], speeds=[0.9, 1.1], phrases=30, held_out=30, keep_audio=12)
    items = plan_corpus(CorpusConfig(sources=(source,))).items
    slow = sum(item.speed == 0.9 for item in items)
    assert 0.35 < slow / len(items) < 0.65
    assert len({item.seed for item in items}) == len(items)
    kept = [item for item in items if item.keep_audio]
    assert Counter((item.source, item.split) for item in kept) == {("big", "train"): 12, ("big", "held_out"): 30}


def test_shards_hold_every_item_once_and_are_many_enough(two):
    plan = plan_corpus(CorpusConfig(sources=(text(two[0]), text(two[1]))))
    assert [item for shard in plan.shards for item in shard] == list(plan.items)
    assert len(plan.shards) == 34  # 300 // 32 = 9 in each


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (lambda a, b: [text(a, held_out=241)], r"source big: held_out: 241 .expected at most"),
        (lambda a, b: [text(a), text(b, name="big")], r"sources: two are called 'big'"),
        (lambda a, b: [text(a.with_name("nope.tsv"))], r"nope\.tsv: no such file"),
        (lambda a, b: [SourceConfig(kind="audio", path=str(a))], r"big\.tsv: 0 has no audio"),
    ],
)
def test_sources_that_cannot_be_planned(two, sources, message):
    with pytest.raises(UserError, match=message):
        plan_corpus(CorpusConfig(sources=tuple(sources(*two))))


def test_text_without_words_or_with_unit_characters_is_left_out(tmp_path):
    path = write(tmp_path / "odd.tsv", ["--", "\u4e00 yes", "<startoftext> hello", "Yes."])
    plan = plan_corpus(CorpusConfig(sources=(text(path),)))
    assert [item.text for item in plan.items] == ["Yes."]
    assert list(plan.left_out.values()) == [3]
    with pytest.raises(UserError, match=r"none\.tsv: there is nothing in it"):
        plan_corpus(CorpusConfig(sources=(text(write(tmp_path / "none.tsv", ["--", "..."])),)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "audio", "phrases": 3}, "phrases: 3 .expected 0 for audio"),
        ({"kind": "audio", "renderings": 2}, "renderings: 2 .expected 1 for audio"),
        ({"kind": "text", "voices": ()}, "voices: .. .expected at least one voice"),
        ({"kind": "text", "disturbed": True}, "disturbed: true .expected only where something is held out"),
        ({"kind": "text-only", "phrases": 3}, "phrases: 3 .expected 0 for text-only"),
        ({"kind": "text", "passages": 20}, "passages: 20 .expected 0 but for text-only"),
        ({"kind": "text-only", "passages": 20, "limit": 100}, "passages: 20 .expected 0 .*without a limit"),
        ({"kind": "text-only", "keep_audio": 3}, "kind: text-only .expected without keep_audio"),
        ({"kind": "text-only", "copies": 2}, "kind: text-only .expected without keep_audio, copies"),
        ({"kind": "text-only", "tasks": ["textlm", "asr"]}, "tasks: .* .expected .textlm., all that text-only can"),
        ({"kind": "audio-only", "tasks": ["tts"]}, "tasks: .* .expected .speechlm., all that audio-only can"),
        ({"kind": "imagined"}, "readers: null .expected a corpus for kind: imagined"),
        ({"kind": "text", "readers": "runs/read"}, "readers: runs/read .expected a corpus for kind: imagined, and"),
        (
            {"kind": "imagined", "readers": "r", "tasks": ["tts"]},
            "tasks: .* .expected .textlm, asr., all that imagined",
        ),
        ({"kind": "imagined", "readers": "r", "held_out": 2}, "held_out: 2 .expected 0 for imagined"),
        ({"kind": "imagined", "readers": "r", "copies": 2}, "kind: imagined .expected without keep_audio, copies"),
        ({"kind": "text", "held_out": 9, "limit": 5}, "held_out: 9 .expected at most the limit, which is 5"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        SourceConfig(path="x", **settings)


ROUGH = AugmentationConfig(share=0.5, rates=(0.9, 1.1), noise=0.5)


def test_voices_renderings_and_copies(two):
    source = text(
        two[0], voices=("hibari", "kokoro"), renderings=2, copies=3, augmentation=ROUGH, held_out=9, keep_audio=5
    )
    items = plan_corpus(CorpusConfig(sources=(source,))).items
    train = [item for item in items if item.split == "train"]
    assert len(train) == (240 - 9) * 6
    assert len({item.id for item in items}) == len(items)
    assert len(members("kokoro")) / 2 < len({item.voice for item in train}) <= 29
    assert sum(item.voice == "hibari" for item in train) / len(train) == pytest.approx(0.5, abs=0.1)
    assert all(item.speaker == item.voice for item in items)
    for i in range(0, 60, 6):  # the six of a sentence stand together, three in one voice
        six = train[i : i + 6]
        assert len({item.text for item in six}) == 1
        said = [(item.voice, item.speed, item.seed) for item in six]
        assert len(set(said[:3])) == len(set(said[3:])) == 1
        assert len({item.seed for item in six}) == 2
        drawn = [item.disturbance for item in six if item.disturbance]
        assert len(set(drawn)) == len(drawn)
    assert sum(item.disturbance is None for item in train) / len(train) == pytest.approx(0.5, abs=0.05)
    kept = [item for item in items if item.keep_audio]
    assert Counter(item.split for item in kept) == {"train": 5, "held_out": 9}
    assert not any(item.disturbance for item in kept)
    held = [item for item in items if item.split == "held_out"]
    assert len(held) == 9
    assert not any(item.disturbance for item in held)


def test_what_is_held_out_may_be_there_disturbed_too(two):
    source = text(two[0], held_out=10, phrases=20, augmentation=ROUGH, disturbed=True)
    items = plan_corpus(CorpusConfig(sources=(source,))).items
    held = [item for item in items if item.split == "held_out"]
    assert all(bool(item.disturbance) is (item.source == "big/disturbed") for item in held)
    clean, rough = ([i for i in held if i.source == source] for source in ("big", "big/disturbed"))
    assert len(rough) == 10
    assert [(i.text, i.voice, i.seed) for i in clean] == [(i.text, i.voice, i.seed) for i in rough]
    assert len({item.id for item in items}) == len(items)


def test_copies_of_recordings(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.wav").write_bytes(b"")
        (tmp_path / f"{name}.txt").write_text(f"Number {name}.")
    source = SourceConfig(kind="audio", path=str(tmp_path), copies=3, augmentation=ROUGH, name="real")
    items = plan_corpus(CorpusConfig(sources=(source,))).items
    assert sorted(item.id for item in items) == sorted(f"real/{n}{c}" for n in ("one", "two") for c in ("", "#2", "#3"))
    assert {item.voice for item in items} == {None}


def test_a_voice_that_is_not_known(two):
    with pytest.raises(UserError, match="robot: no such voice"):
        plan_corpus(CorpusConfig(sources=(text(two[0], voices=("robot",)),)))


def test_text_alone_is_neither_voiced_nor_heard(two):
    source = text(two[0], held_out=3, limit=50)
    plan = plan_corpus(CorpusConfig(sources=(dataclasses.replace(source, kind="text-only"), text(two[1]))))
    silent = [item for item in plan.items if item.source == "big"]
    assert len(silent) == 50
    assert {item.split for item in silent} == {"train", "held_out"}
    assert plan.left_out == {"limit": 190}
    assert not any(item.heard or item.voice or item.speaker or item.audio for item in silent)
    assert {item.source for item in plan.to_fit(100)} == {"small"}


@settings(max_examples=60, deadline=None)
@given(st.lists(dressed, min_size=6, max_size=40), st.integers(0, 3), st.integers(1, 9))
def test_neighbouring_sentences_become_passages(sentences, held_out, words):
    held_out = min(held_out, len({key(s) for s in sentences}) - 1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(write(Path(folder) / "book.tsv", sentences))
        source = SourceConfig(kind="text-only", path=path, held_out=max(0, held_out), passages=words)
        plan = plan_corpus(CorpusConfig(sources=(source,)))
    held = {key(item.text) for item in plan.items if item.split == "held_out"}
    passages = {int(item.id.partition("/")[2]): item.text for item in plan.items if item.split == "train"}
    starts = sorted(passages)
    kept = [i for i, s in enumerate(sentences) if key(s) not in held]
    assert " ".join(passages[i] for i in starts) == " ".join(sentences[i] for i in kept)
    for start, following in zip(starts, [*starts[1:], len(sentences)], strict=True):
        inside = [i for i in kept if start <= i < following]
        assert passages[start] == " ".join(sentences[i] for i in range(start, inside[-1] + 1))  # without a gap
        assert len(inside) == 1 or len(passages[start].split()) <= words
        more = following < len(sentences) and inside[-1] + 1 == following
        assert not more or len(f"{passages[start]} {sentences[following]}".split()) > words


@pytest.mark.parametrize("kind", ["text-only", "audio-only"])
def test_so_many_of_a_long_list_are_drawn_from_all_of_it(tmp_path, kind):
    (tmp_path / "x.wav").touch()
    rows = (f'{{"id": "{i}", "text": "line {i}", "audio": "x.wav"}}\n' for i in range(2000))
    (tmp_path / "list.jsonl").write_text("".join(rows))
    source = SourceConfig(kind=kind, path=str(tmp_path / "list.jsonl"), limit=200, held_out=50)
    plan = plan_corpus(CorpusConfig(sources=(source,)))
    numbers = sorted(int(item.id.partition("/")[2]) for item in plan.items)
    assert len(set(numbers)) == 200
    assert plan.left_out == {"limit": 1800}
    assert 800 < sum(numbers) / 200 < 1200
    assert all((item.text is None) == (kind == "audio-only") for item in plan.items)
    last = plan_corpus(CorpusConfig(sources=(dataclasses.replace(source, held_out_from="end"),)))
    assert {item.id for item in last.items} == {f"list/{i}" for i in range(1800, 2000)}
    assert {item.id for item in last.items if item.split == "held_out"} == {f"list/{i}" for i in range(1950, 2000)}


def test_speech_alone_whose_words_are_known_is_held_out_by_them(tmp_path):
    """A transcript that is left aside still tells that a sentence is one that is scored elsewhere."""
    said = ["The old house.", "A hill.", "Yes."]
    for i in range(3):
        (tmp_path / f"{i}.wav").touch()
    rows = (f'{{"text": "{one}", "audio": "{i}.wav"}}\n' for i, one in enumerate(said))
    (tmp_path / "said.jsonl").write_text("".join(rows))
    test = write(tmp_path / "test.tsv", ["THE OLD HOUSE"])
    speech = SourceConfig(kind="audio-only", path=str(tmp_path / "said.jsonl"))
    plan = plan_corpus(CorpusConfig(sources=(speech, text(test, held_out=1))))
    assert sorted(item.id for item in plan.items if item.split == "train") == ["said/1.wav", "said/2.wav"]
    assert plan.left_out == {"held out": 1}


def test_speech_alone_may_be_in_any_script_and_sources_may_number_alike(tmp_path):
    """What cannot be written is no reason to pass over what is said; and a held-out "1" of one is no "1" of another."""
    for name, said in {"zh": "你好", "en": "Good morning."}.items():
        (tmp_path / name).mkdir()
        rows = [{"audio": f"{n}.wav", "text": said, "id": str(n)} for n in (1, 2)]
        (tmp_path / name / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for n in (1, 2):
            (tmp_path / name / f"{n}.wav").touch()
            (tmp_path / name / f"bare-{n}.flac").touch()
    lists = [
        SourceConfig(kind="audio-only", name=name, path=str(tmp_path / name / "list.jsonl")) for name in ("zh", "en")
    ]
    items = plan_corpus(CorpusConfig(sources=tuple(lists))).items
    assert sorted(item.id for item in items) == ["en/1", "en/2", "zh/1", "zh/2"]
    assert {item.text for item in items} == {None}
    folders = [
        SourceConfig(kind="audio-only", path=str(tmp_path / name), layout="audio", held_out=held)
        for name, held in (("zh", 4), ("en", 0))
    ]
    plan = plan_corpus(CorpusConfig(sources=tuple(folders)))
    assert Counter((item.source, item.split) for item in plan.items) == {("zh", "held_out"): 4, ("en", "train"): 4}
    assert plan.left_out == {}


def test_a_source_that_is_the_working_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metadata.csv").write_text("1|Good morning.\n")
    monkeypatch.chdir(tmp_path / "mine")
    (item,) = plan_corpus(CorpusConfig(sources=(text(Path()),))).items
    assert item.id == "mine/1"
