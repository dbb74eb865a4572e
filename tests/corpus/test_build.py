"""Corpora of a few short sentences, voiced by the embedded teacher and encoded by the embedded encoder."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import miniature
import numpy as np
import pyarrow.parquet as pq
import pytest

from sparq.artifacts import ArtifactMismatchError
from sparq.config import AugmentationConfig, CorpusConfig, EncoderConfig, SourceConfig, UnitsConfig
from sparq.corpus import shard
from sparq.corpus.build import build_corpus, corpus_stage
from sparq.corpus.codebook import load_codebook, load_extractor
from sparq.corpus.corpus import Corpus
from sparq.corpus.plan import Item, plan_corpus
from sparq.corpus.shard import build_shard
from sparq.corpus.table import SCHEMA
from sparq.errors import UserError
from sparq.language.tasks import TASKS
from sparq.schema import dump
from sparq.speech.audio import load_audio, save_audio
from sparq.speech.augmentation import disturb
from sparq.speech.level import levelled
from sparq.speech.phones import PAUSE, pronounce
from sparq.speech.views import other_views
from sparq.speech.voices import load_voice
from sparq.stages import StageEvent, run_stage

SENTENCES = [
    "The train leaves at half past nine.", "She'd like a garden.", "A neighbour said.", "Nothing was found there.",
    "The house stood empty.", "Come back soon!", "He paid 25 pounds.", "It was cold, and nobody spoke.", "We shall see.",
]  # fmt: skip

CHILD = """
import json, sys
from pathlib import Path
from sparq.config import CorpusConfig
from sparq.corpus import shard
from sparq.corpus.build import build_corpus
from sparq.schema import parse

if __name__ == "__main__":
    build_corpus(parse(CorpusConfig, json.loads(sys.argv[1])), Path(sys.argv[2]), quiet=True)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CorpusConfig:
    path = tmp_path_factory.mktemp("text") / "small.tsv"
    path.write_text("".join(f"{i}\t{sentence}\n" for i, sentence in enumerate(SENTENCES)))
    source = SourceConfig(kind="text", path=str(path), speeds=(0.9, 1.1), phrases=34, held_out=2, keep_audio=2)
    return CorpusConfig(sources=(source,), units=UnitsConfig(clusters=20, fit_utterances=10), processes=1)


@pytest.fixture(scope="module")
def corpus(config, tmp_path_factory) -> Corpus:
    return build_corpus(config, tmp_path_factory.mktemp("built") / "corpus", quiet=True)


def content(folder: Path) -> dict[str, bytes]:
    """Everything but what says when and how fast it was made."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in ("sparq.json", "statistics.json", "stage.json")
    }


def test_columns_and_statistics(config, corpus):
    tables = [pq.ParquetFile(path).read() for path in sorted((corpus.folder / "shards").iterdir())]
    assert len(tables) > 3
    assert all(table.schema.equals(SCHEMA) for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    plan = plan_corpus(config)
    assert [(row["id"], row["text"], row["split"]) for row in rows] == [(i.id, i.text, i.split) for i in plan.items]
    assert {row["speaker"] for row in rows} == {"hibari"}
    told = corpus.statistics
    assert (told["utterances"], told["train"], told["held_out"]) == (len(rows), len(rows) - 4, 4)
    assert told["with_audio"] == sum(row["audio"] is not None for row in rows) == 4  # the two held out keep theirs
    assert told["with_word_times"] == sum(row["word_starts"] is not None for row in rows) > len(rows) / 2
    assert corpus.seconds == pytest.approx(sum(row["seconds"] for row in rows))
    assert told["hours"] == pytest.approx(corpus.seconds / 3600, abs=1e-4)
    assert told["hours_of_audio_per_hour"] > 1
    assert told["skipped"] == []
    assert sorted(path.name for path in corpus.folder.iterdir()) == [
        "codebook", "shards", "sparq.json", "stage.json", "statistics.json",
    ]  # fmt: skip


def test_units_and_words_are_those_of_the_voice_and_the_encoder(config, corpus):
    extractor, voice = load_extractor(corpus.codebook), load_voice("hibari")
    made = corpus.utterances("train", ["small"])
    planned = [item for item in plan_corpus(config).items if (item.source, item.split) == ("small", "train")]
    assert [utterance.text for utterance in made] == [item.text for item in planned]
    for utterance, item in list(zip(made, planned, strict=True))[:4]:
        said = voice.speak(item.text, item.speed, item.seed)
        np.testing.assert_array_equal(utterance.units, extractor.extract([said.waveform])[0])
        if said.words is None:
            assert utterance.starts is None
            continue
        seconds = np.array([[word.start, word.end] for word in said.words])
        frames = np.stack([utterance.starts, utterance.ends], axis=1)
        # Half a frame of 24 ms, but for a word that ends behind the last frame.
        np.testing.assert_allclose(np.minimum(seconds, len(utterance.units) * 0.024), frames * 0.024, atol=0.0121)


def test_what_is_held_out_is_heard_in_several_ways(config, corpus):
    views = dataclasses.replace(config, views=3)
    held = [item for item in plan_corpus(views).items if item.split == "held_out"][:2]
    trained = next(item for item in plan_corpus(views).items if item.split == "train")
    rows = build_shard([*held, trained], corpus.codebook).to_pylist()
    extractor, voice = load_extractor(corpus.codebook), load_voice("hibari")
    for item, row in zip(held, rows, strict=False):
        said = voice.speak(item.text, item.speed, item.seed)
        (expected,) = other_views(extractor, [said.waveform], 3)
        assert len(row["views"]) == 2
        for its, units in zip(row["views"], expected, strict=True):
            np.testing.assert_array_equal(its, units)
        assert its != row["units"]
    assert rows[2]["views"] is None
    assert plan_corpus(views).fingerprint != plan_corpus(config).fingerprint


def test_views_come_back_and_shards_without_them_do_too(config, tmp_path):
    made = build_corpus(
        dataclasses.replace(config, views=2, limit=40, sources=config.sources[:1]), tmp_path / "a", quiet=True
    )
    assert {len(one.views) for one in made.utterances("held_out")} == {1}
    assert {one.views for one in made.utterances("train")} == {()}
    assert made.utterances("held_out")[0].views[0].dtype == np.int64
    path = next(
        path for path in (tmp_path / "a" / "shards").iterdir() if "train" in pq.read_table(path)["split"].to_pylist()
    )
    table = pq.read_table(path)  # as an earlier SpARQ wrote it
    pq.write_table(table.drop_columns("views").replace_schema_metadata(table.schema.metadata), path)
    assert len(Corpus.load(tmp_path / "a").utterances("train")) == len(made.utterances("train"))


def test_copies_are_said_once_and_disturbed_each_in_its_way(config, corpus, monkeypatch):
    rough = AugmentationConfig(share=1, rates=(0.8, 1.2), noise=1, noises=("babble",), room=0.5, telephone=0.5)
    source = dataclasses.replace(config.sources[0], phrases=0, held_out=0, keep_audio=0, copies=3, augmentation=rough)
    items = plan_corpus(dataclasses.replace(config, sources=(source,))).items[:6]
    voice, told = load_voice("hibari"), []
    monkeypatch.setattr(voice, "_speak", lambda *given, speak=voice._speak: told.append(given[0]) or speak(*given))
    monkeypatch.setattr(shard, "_voice", lambda name: voice)
    rows = build_shard(items, corpus.codebook).to_pylist()
    assert told == [items[0].text, items[3].text]
    assert [row["text"] for row in rows] == [items[0].text] * 3 + [items[3].text] * 3
    extractor = load_extractor(corpus.codebook)
    for item, row in zip(items, rows, strict=True):
        said = voice.speak(item.text, item.speed, item.seed)
        other = next(i for i in items if i.text != item.text)
        others = [voice.speak(other.text, other.speed, other.seed).waveform] * 3
        heard = disturb(said.waveform, item.disturbance, others)
        assert row["seconds"] == len(heard) / 16000
        np.testing.assert_array_equal(row["units"], extractor.extract([heard])[0])
        if said.words:
            starts = [word.start / item.disturbance.rate / 0.024 for word in said.words]
            np.testing.assert_allclose(row["word_starts"], np.minimum(starts, len(row["units"])), atol=0.51)
    assert len({tuple(row["units"]) for row in rows}) == 6
    assert all(row["disturbed"] for row in rows)


def test_a_corpus_made_before_disturbances_has_none(corpus, tmp_path):
    shutil.copytree(corpus.folder, tmp_path / "old")
    for path in (tmp_path / "old" / "shards").iterdir():
        pq.write_table(pq.ParquetFile(path).read().drop_columns(["disturbed"]), path)
    old = Corpus.load(tmp_path / "old").utterances("train")
    assert [utterance.disturbed for utterance in old] == [False] * len(corpus.utterances("train"))


def test_a_number_that_is_read_as_several_words_has_no_word_times(corpus):
    every = corpus.utterances("train") + corpus.utterances("held_out")
    numbers = [u for u in every if "25 pounds" in u.text or u.text == "25"]
    assert numbers
    assert all(u.starts is None and u.ends is None for u in numbers)


def test_utterances_by_split_and_source(corpus):
    assert corpus.sources == ["small", "small/phrases"]
    assert len(corpus.utterances("held_out", ["small"])) == len(corpus.utterances("held_out", ["small/phrases"])) == 2
    assert len(corpus.utterances("train")) == len(corpus.utterances("train", corpus.sources))
    utterance = next(u for u in corpus.utterances("train", ["small"]) if u.starts is not None and u.words > 2)
    middle = utterance.span(1, 2)
    assert middle.text == utterance.text.split()[1]
    assert 0 < len(middle.units) < len(utterance.units) / 2
    with pytest.raises(UserError, match=r"no source 'smal' in it .did you mean small"):
        corpus.utterances("train", ["smal"])
    with pytest.raises(UserError, match="split 'test': expected train or held_out"):
        corpus.utterances("test")


def test_kept_audio_gives_its_units_again(corpus):
    recordings = corpus.recordings()
    assert len(recordings) == 2
    extractor = load_extractor(corpus.codebook)
    for recording in recordings:
        again = extractor.extract([recording.waveform])[0]
        assert np.mean(again == recording.units) > 0.97  # kept with 16 bits
    with pytest.raises(UserError, match="no audio was kept"):
        corpus.recordings(["small/phrases"])


def test_killed_in_the_middle_and_finished_with_another_number_of_processes(config, corpus, tmp_path):
    folder, script = tmp_path / "corpus", tmp_path / "child.py"
    script.write_text(CHILD)
    settings = json.dumps(dump(dataclasses.replace(config, processes=2)))
    process = subprocess.Popen([sys.executable, str(script), settings, str(folder)], start_new_session=True)
    try:
        while not list(tmp_path.glob(".corpus.*.partial/shards/0*")):
            assert process.poll() is None
            time.sleep(0.002)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        assert len(workers) >= 2
        for _ in range(1000):
            if not any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
                break
            time.sleep(0.01)
        else:
            pytest.fail("workers outlived their parent")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".corpus.*.partial/shards/0*")}
    assert 0 < len(before) < len(list((corpus.folder / "shards").iterdir()))
    with pytest.raises(UserError, match="not a SpARQ corpus folder"):
        Corpus.load(folder)
    finished = build_corpus(config, folder, quiet=True)
    assert {name: (folder / "shards" / name).stat().st_mtime_ns for name in before} == before
    assert content(folder) == content(corpus.folder)
    assert finished.fingerprint == corpus.fingerprint


def test_two_processes_and_a_ready_codebook_make_the_same_shards_as_a_stage(config, corpus, tmp_path):
    units = dataclasses.replace(config.units, name=str(corpus.folder / "codebook"))
    parallel = dataclasses.replace(config, units=units, processes=2)
    run_stage(tmp_path, corpus_stage(parallel, quiet=True))
    assert content(tmp_path / "corpus") == content(corpus.folder)
    states: list[str] = []
    again = corpus_stage(dataclasses.replace(parallel, processes=7), quiet=True)
    run_stage(tmp_path, again, lambda event: states.append(event.state))
    assert states == ["skipped"]


def test_a_complete_corpus_is_left_as_it_is_and_replaced_only_when_that_is_asked_for(config, corpus, tmp_path):
    folder, path = tmp_path / "corpus", tmp_path / "small.tsv"
    shutil.copytree(corpus.folder, folder)
    build_corpus(config, folder, quiet=True)
    made = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")}
    assert {
        corpus.folder / path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*.parquet")
    } == {path: time for path, time in made.items() if path.suffix == ".parquet"}
    path.write_text("0\tGood morning.\n")
    source = SourceConfig(kind="text", path=str(path))
    changed = dataclasses.replace(config, sources=(source,), units=UnitsConfig(name=str(corpus.folder / "codebook")))
    with pytest.raises(UserError, match="corpus: was made with other settings or inputs; overwrite it, or choose"):
        build_corpus(changed, folder, quiet=True)
    assert content(folder) == content(corpus.folder)
    anew = build_corpus(changed, folder, quiet=True, overwrite=True)
    assert [u.text for u in anew.utterances("train")] == ["Good morning."]
    # What the sentences may teach is in no sentence, and still another corpus.
    asr = dataclasses.replace(changed, sources=(dataclasses.replace(source, tasks=("textlm",)),))
    with pytest.raises(UserError, match="corpus: was made with other settings or inputs; overwrite it, or choose"):
        build_corpus(asr, folder, quiet=True)
    told = build_corpus(asr, folder, quiet=True, overwrite=True).utterances("train")
    assert [name for name, task in TASKS.items() if told[0].serves(task)] == ["textlm"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["corpus", "small.tsv"]


def test_two_that_build_one_corpus_at_once_do_not_get_in_each_others_way(config, corpus, tmp_path):
    units = UnitsConfig(name=str(corpus.folder / "codebook"))
    ready, refused = dataclasses.replace(config, units=units), []

    def meanwhile(event: StageEvent) -> None:
        if event.state == "started":
            other = multiprocessing.get_context("spawn").Process(target=_refused, args=(ready, tmp_path / "corpus"))
            other.start()
            other.join()
            refused.append(other.exitcode)

    run_stage(tmp_path, corpus_stage(ready, quiet=True), meanwhile)
    assert refused == [0]
    assert content(tmp_path / "corpus") == content(corpus.folder)


def _refused(config: CorpusConfig, folder: Path) -> None:
    with pytest.raises(UserError, match="is working on it; wait for it or end it"):
        build_corpus(config, folder, quiet=True)


@pytest.fixture
def recordings(tmp_path) -> Path:
    """One good recording among five that cannot be used."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    good = load_voice("hibari").speak("Come back soon!").waveform
    for name, waveform in {"good": good, "cut": good, "short": good[:300], "silent": 0 * good}.items():
        save_audio(folder / f"{name}.wav", waveform)
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:9000])
    (folder / "text.flac").write_text("not audio at all")
    (folder / "empty.wav").touch()
    for audio in list(folder.iterdir()):
        audio.with_suffix(".txt").write_text("Come back soon!")
    return folder


def test_what_cannot_be_used_is_skipped_and_told(config, corpus, recordings):
    source = SourceConfig(kind="audio", path=str(recordings), keep_audio=9)
    units = UnitsConfig(name=str(corpus.folder / "codebook"))
    folder = recordings.parent / "corpus"
    made = build_corpus(dataclasses.replace(config, sources=(source,), units=units), folder, quiet=True)
    reasons = {told["id"].removeprefix("recordings/"): told["reason"] for told in made.statistics["skipped"]}
    assert set(reasons) == {"cut", "short", "silent", "text", "empty"}
    assert "truncated" in reasons["cut"]
    assert "too short (0.019 s)" in reasons["short"]
    assert "is silent" in reasons["silent"]
    assert "not audio" in reasons["text"]
    assert [u.text for u in made.utterances("train")] == ["Come back soon!"]
    assert made.utterances("train")[0].starts is None
    assert len(made.recordings()) == 1
    assert "1 utterances (1 to train on, 0 held out)" in made.summary
    assert "5 skipped, such as recordings/" in made.summary

    (recordings / "good.wav").write_bytes(b"")
    for name in (units.name, None):
        units = UnitsConfig(name=name, clusters=2)
        with pytest.raises(UserError, match="none of 6 utterances can be used"):
            build_corpus(
                dataclasses.replace(config, sources=(source,), units=units), folder, quiet=True, overwrite=True
            )
        assert [u.text for u in Corpus.load(folder).utterances("train")] == ["Come back soon!"]  # what was made stays
        assert sorted(path.name for path in folder.parent.iterdir()) == ["corpus", "recordings"]


def test_parts_that_were_not_made_for_each_other(config, corpus, tmp_path):
    ready = UnitsConfig(name=str(corpus.folder / "codebook"))
    with pytest.raises(ArtifactMismatchError):
        build_corpus(
            dataclasses.replace(config, units=ready, encoder=EncoderConfig(layers=(1,))), tmp_path / "c", quiet=True
        )
    assert not (tmp_path / "c").exists()
    other = dataclasses.replace(corpus.codebook, centroids=corpus.codebook.centroids + 1)
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder)
    other.save(folder / "codebook")
    with pytest.raises(ArtifactMismatchError, match="the corpus was made for"):
        Corpus.load(folder)


def test_damaged_corpora_and_folders_of_others(config, corpus, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder)
    (folder / "shards" / "00001.parquet").unlink()
    with pytest.raises(UserError, match=r"00001\.parquet: missing or damaged"):
        Corpus.load(folder)
    (folder / "shards" / "00001.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match=r"00001\.parquet: missing or damaged"):
        Corpus.load(folder)
    (folder / "statistics.json").write_text("{")
    with pytest.raises(UserError, match=r"statistics\.json: missing or damaged"):
        Corpus.load(folder)
    mine = tmp_path / "mine"
    (mine / "shards").mkdir(parents=True)
    (mine / "shards" / "photo.jpg").touch()
    with pytest.raises(UserError, match="mine: is in the way"):
        build_corpus(config, mine, quiet=True)
    assert (mine / "shards" / "photo.jpg").exists()
    with pytest.raises(UserError, match="nope: no such shipped weights"):
        load_codebook("nope")


def test_a_shard_depends_on_its_items_and_codebook_alone(config, corpus):
    """What another engine relies on: any cut of the items gives the same rows."""
    items = plan_corpus(config).items[:6]
    whole = build_shard(items, corpus.codebook).to_pylist()
    assert (
        build_shard(items[:1], corpus.codebook).to_pylist() + build_shard(items[1:], corpus.codebook).to_pylist()
        == whole
    )


def test_speech_alone_text_alone_and_pairs_in_one_corpus(config, corpus, tmp_path):
    (tmp_path / "written.txt").write_text("Nobody said this.\nNor this.\n")
    sources = (
        SourceConfig(kind="text-only", path=str(tmp_path / "written.txt"), held_out=1),
        SourceConfig(kind="audio-only", path=str(miniature.librilight(tmp_path / "light")), keep_audio=9),
        SourceConfig(kind="audio", path=str(miniature.librispeech(tmp_path / "libri")), tasks=("asr",)),
    )
    units = UnitsConfig(name=str(corpus.folder / "codebook"))
    made = build_corpus(dataclasses.replace(config, sources=sources, units=units), tmp_path / "corpus", quiet=True)
    rows = {row["id"]: row for row in made.table.to_pylist()}
    assert made.table.schema.equals(SCHEMA.remove(SCHEMA.get_field_index("audio")))
    silent = rows["written/written-1"]
    assert (silent["text"], silent["units"], silent["seconds"], silent["speaker"]) == (
        "Nobody said this.",
        None,
        0,
        None,
    )
    wordless = rows["light/small/204/a_book_64kb_mp3/chapter_small-0"]
    assert (wordless["text"], wordless["speaker"]) == (None, "204")
    whole = load_audio(tmp_path / "light" / "small" / "204" / "a_book_64kb_mp3" / "chapter_small.flac")
    part = whole[1600 : round(2.9 * 16000)]
    assert wordless["seconds"] == pytest.approx(len(part) / 16000)
    np.testing.assert_array_equal(wordless["units"], load_extractor(made.codebook).extract([part])[0])
    assert rows["libri/84-121-0000"]["speaker"] == "84"
    told = made.statistics
    assert (told["utterances"], told["text_only"], told["speech_only"], told["with_audio"]) == (7, 2, 2, 2)
    assert "2 of speech alone, 2 of text alone" in made.summary
    served = Counter(task for u in made.utterances("train") for task in TASKS.values() if u.serves(task))
    assert {task.name: count for task, count in served.items()} == {"textlm": 1, "speechlm": 2, "asr": 3}
    assert [u.text for u in made.utterances("held_out")] in (["Nobody said this."], ["Nor this."])
    assert len(made.recordings()) == 2
    # Where nobody says anything, there is nothing to fit units on.
    alone = dataclasses.replace(config, sources=sources[:1])
    with pytest.raises(UserError, match=r"units.name: null .expected a ready codebook: there is no speech to fit"):
        build_corpus(alone, tmp_path / "alone", quiet=True)
    ready = build_corpus(dataclasses.replace(alone, units=units), tmp_path / "alone", quiet=True)
    assert ready.statistics["text_only"] == ready.statistics["utterances"] == 2


def test_parts_of_one_file_that_stand_together_are_told_apart(corpus, tmp_path):
    """What has the same speech is made once; without a text, it is the place in the file that tells."""
    file = tmp_path / "long.flac"
    miniature.sound(file, 4.0)
    parts = [(0.0, 1.5), (1.5, 1.5), (1.5, 1.5), (3.0, None)]
    items = [
        Item(f"s/{i}", "s", "train", None, None, audio=file, start=start, seconds=seconds)
        for i, (start, seconds) in enumerate(parts)
    ]
    made = [row["units"] for row in build_shard(items, corpus.codebook).to_pylist()]
    whole = load_audio(file)
    cut = [whole[:24000], whole[24000:48000], whole[24000:48000], whole[48000:]]
    for units, expected in zip(made, load_extractor(corpus.codebook).extract(map(levelled, cut)), strict=True):
        np.testing.assert_array_equal(units, expected)
    assert made[0] != made[1]


def test_phonetic_units_from_a_voice_that_times_its_phones(config, corpus, tmp_path):
    """There are about as many of them as phones; and none without such a voice."""
    phonetic = dataclasses.replace(
        config,
        encoder=EncoderConfig(layers=(3, 5)),
        units=UnitsConfig(kind="phonetic", clusters=20, fit_utterances=20),
    )
    built = build_corpus(phonetic, tmp_path / "corpus", quiet=True)
    classifier = built.codebook.classifier
    assert classifier is not None
    assert {"n", "i", "|"} <= set(classifier.phones)

    made = built.utterances("train", ["small"])
    phones = sum(phone != PAUSE for one in made for phone in pronounce(one.text))
    assert 0.6 < sum(1 + np.count_nonzero(np.diff(one.units)) for one in made) / phones < 1.4
    (tmp_path / "read" / "wavs").mkdir(parents=True)
    save_audio(tmp_path / "read" / "wavs" / "said.wav", load_voice("hibari").speak(SENTENCES[0]).waveform)
    (tmp_path / "read" / "metadata.csv").write_text(f"said|{SENTENCES[0]}\n")
    recordings = dataclasses.replace(phonetic, sources=(SourceConfig(kind="audio", path=str(tmp_path / "read")),))
    with pytest.raises(UserError, match="0 frames with known phones"):
        build_corpus(recordings, tmp_path / "none", quiet=True)
    # A ready codebook can be refined on them, though they time nothing; its units go on meaning what they meant.
    book = tmp_path / "corpus" / "codebook"
    units = UnitsConfig(name=str(book), kind="phonetic", refine=True)
    refined = build_corpus(
        dataclasses.replace(recordings, encoder=EncoderConfig(), units=units), tmp_path / "r", quiet=True
    )
    assert refined.codebook.meaning == built.codebook.fingerprint != refined.codebook.fingerprint
    assert Corpus.load(tmp_path / "r").codebook.fingerprint == refined.codebook.fingerprint
    np.testing.assert_array_equal(refined.codebook.centroids, built.codebook.centroids)


def test_plain_units_are_not_refined(corpus, config, tmp_path):
    with pytest.raises(UserError, match="refine: true \\(expected only with kind: phonetic, not kmeans\\)"):
        UnitsConfig(refine=True)
    units = UnitsConfig(name=str(corpus.folder / "codebook"), kind="phonetic", refine=True)
    with pytest.raises(UserError, match="this one has plain units"):
        build_corpus(dataclasses.replace(config, units=units), tmp_path / "c", quiet=True)


@pytest.fixture(scope="module")
def read(config, tmp_path_factory) -> Corpus:
    """The sentences read by hibari, in the phonetic units that ship."""
    units = UnitsConfig(name="codebook")
    encoder = EncoderConfig(layers=load_codebook("codebook").layers)
    source = dataclasses.replace(config.sources[0], augmentation=AugmentationConfig(share=0.3, rates=(0.9, 1.1)))
    said = dataclasses.replace(config, sources=(source,), units=units, encoder=encoder)
    return build_corpus(said, tmp_path_factory.mktemp("read") / "corpus", quiet=True)


def imagining(config: CorpusConfig, read: Corpus, path: Path, **how) -> CorpusConfig:
    source = SourceConfig(kind="imagined", path=str(path), readers=str(read.folder), **how)
    units = UnitsConfig(name=str(read.folder / "codebook"))
    return dataclasses.replace(
        config, sources=(source,), units=units, encoder=EncoderConfig(layers=read.codebook.layers)
    )


def test_texts_that_are_read_in_imagination(config, read, tmp_path):
    path = tmp_path / "texts.txt"
    said = [one.text.rstrip(".!") for one in read.utterances("train", ["small"])][:3]
    texts = [" ".join(reversed(text.split())) for text in said]
    path.write_text("".join(f"{text}.\n" for text in texts))
    settings = imagining(config, read, path, renderings=3)
    made = build_corpus(settings, tmp_path / "one", quiet=True)
    rows = made.table.to_pylist()
    assert len(rows) == 9
    assert {row["speaker"] for row in rows} <= {"small", "small/phrases", "disturbed small", "disturbed small/phrases"}
    assert {row["seconds"] for row in rows} == {0.0}
    assert len({tuple(row["units"]) for row in rows if row["text"] == f"{texts[0]}."}) == 3  # each anew
    assert made.statistics["imagined"] == 9
    assert made.statistics["hours"] == 0
    assert "9 read in imagination" in made.summary
    for one in made.utterances("train"):
        assert [name for name, task in TASKS.items() if one.serves(task)] == ["textlm", "asr"]
        if one.starts is not None:
            assert len(one.starts) == one.words
            assert one.span(0, 2).units.tolist() == one.units[one.starts[0] : one.ends[1]].tolist()
    again = build_corpus(dataclasses.replace(settings, processes=2), tmp_path / "two", quiet=True)
    assert content(again.folder) == content(made.folder)
    # hibari's own units of the sentence are about as many: nothing is lost, nothing doubled.
    (units,) = load_extractor(read.codebook).extract([load_voice("hibari").speak(f"{texts[0]}.").waveform])
    lengths = [len(row["units"]) for row in rows if row["text"] == f"{texts[0]}."]
    assert np.mean(lengths) == pytest.approx(len(units), rel=0.3)


def test_imagination_needs_readers_of_the_same_units(config, corpus, read, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Nobody was found there.\n")
    settings = imagining(config, read, path)
    assert plan_corpus(settings).fingerprint != plan_corpus(imagining(config, corpus, path)).fingerprint
    other = UnitsConfig(name=str(corpus.folder / "codebook"))
    mixed = dataclasses.replace(settings, units=other, encoder=config.encoder)
    with pytest.raises(ArtifactMismatchError, match="what is imagined was made for"):
        build_corpus(mixed, tmp_path / "a", quiet=True)
    plain = dataclasses.replace(imagining(config, corpus, path), encoder=config.encoder)
    with pytest.raises(UserError, match=r"corpus: readers: have plain units"):
        build_corpus(plain, tmp_path / "b", quiet=True)
    source = dataclasses.replace(settings.sources[0], readers=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        build_corpus(dataclasses.replace(settings, sources=(source,)), tmp_path / "c", quiet=True)


def test_a_corpus_of_imagined_speech_has_no_readers(config, read, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Nobody was found there.\n")
    made = build_corpus(imagining(config, read, path), tmp_path / "first", quiet=True)
    with pytest.raises(UserError, match=r"first: has no readers .expected speech with its text"):
        build_corpus(imagining(config, made, path), tmp_path / "second", quiet=True)


def test_what_no_reader_can_say_is_left_out_and_named(config, read, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Nobody was found there.\nA beige mirage.\n")  # none of the sentences has such a sound
    made = build_corpus(imagining(config, read, path), tmp_path / "corpus", quiet=True)
    assert [row["text"] for row in made.table.to_pylist()] == ["Nobody was found there."]
    (left,) = made.statistics["skipped"]
    assert left["reason"].endswith("no reader says such phones")
