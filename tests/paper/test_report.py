from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.paper.drawing import FILE, short
from sparq.paper.figures import (
    LIVE_PANELS,
    LossCurve,
    OutlierBar,
    OutlierCurve,
    loss_curves,
    outlier_bars,
    outlier_curves,
)
from sparq.paper.heatmaps import HeadMaps
from sparq.paper.report import (
    COLUMNS,
    Recording,
    ReportData,
    ScoreRow,
    Sound,
    SpokenSentence,
    Take,
    Transcript,
    _number,
    _words,
    write_report,
)

MADE = {"command": "sparq demo", "commit": "c0ffee", "machine": "x86_64, 2 cores", "date": "2026-11-22T20:00:00+00:00"}
VOID = {"meta", "link", "br", "hr", "img", "input"}
SINKS = ("none", "max", "zero", "mean", "l1", "learned", "clipped", "gated")


class Page(HTMLParser):
    """Reads a page, checks that its elements nest, and keeps what the tests ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[tuple[str, bool]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len({name for name, _ in attributes}) == len(attributes), f"an attribute given twice: {tag}"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(("", False))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            text, bold = self.rows[-1][-1]
            self.rows[-1][-1] = (" ".join(text.replace("\u202f", "_").split()), bold)

    def handle_data(self, text):
        if "style" not in self.open:
            self.text.append(text)
        if "td" in self.open or "th" in self.open:
            before, bold = self.rows[-1][-1]
            self.rows[-1][-1] = (before + text, bold or "strong" in self.open)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def sound(seconds: float = 0.01) -> Sound:
    return Sound(np.sin(np.arange(int(16000 * seconds)) / 7).astype(np.float32) * 0.5, 16000)


def scores(sink: str, bits: str, factor: float, method: str | None = None) -> ScoreRow:
    return ScoreRow(
        sink=sink,
        bits=bits,
        method=method,
        text_perplexity=20 * factor,
        speech_perplexity=1234.5 * factor,
        asr_wer=30 * factor,
        tts_wer=40 / factor,
        average_drop=None if method is None else -1.25,
        maximum_infinity_norm=1e9 * factor,
        average_kurtosis=math.inf if sink == "none" else 3.0,
    )


def heads(sink: str) -> HeadMaps:
    random = np.random.default_rng(0)
    return HeadMaps(sink, 3, random.random((4, 9, 9)), *random.normal(size=(2, 4, 9, 5)), text_from=6)


def live(sink: str, factor: float = 1.0) -> OutlierCurve:
    return OutlierCurve(sink, [5, 10], {name: [0.5 * factor, 0.25] for name in LIVE_PANELS})


@pytest.fixture(scope="module")
def data() -> ReportData:
    return ReportData(
        name="demo",
        description="A test of <script>alert('x')</script> & more.",
        made=MADE,
        recipe="name: demo\n",
        facts={"Model": "4.4 million parameters"},
        scores=[
            scores("none", "W16A16", 1.0),
            scores("none", "W4A4", 2.0, "SmoothQuant"),
            scores("max", "W16A16", 1.5),
            scores("max", "W4A4", 1.5, "SmoothQuant"),
        ],
        curves=[LossCurve(s, [10, 20, 30], [5.0 - i, 4.0, 3.0 + i]) for i, s in enumerate(SINKS)],
        outliers=[OutlierBar(s, m, 10.0, 3.0) for s in SINKS for m in ("text", "speech", "speech with text")],
        live=[live(s) for s in SINKS],
        heads=[heads(s) for s in ("none", "max")],
        sample="It was <the> best.",
        recordings=[
            Recording(
                "two_cities.wav", sound(), "It was the best of times", [Transcript("max", "it was the rest", 40.0)]
            )
        ],
        spoken=[SpokenSentence('A "quoted" one.', [Take(s, sound(), "a quoted none") for s in SINKS])],
        notes=["Only a test."],
    )


@pytest.fixture(scope="module")
def text(data, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "run" / "report.html"
    write_report(path, data)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def page(text) -> Page:
    return Page(text)


def test_page_asks_nothing_of_anyone(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
        assert tag not in ("script", "iframe", "object")
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_what_was_given_is_text_and_not_markup(page):
    assert "<script>alert('x')</script>" in "".join(page.text)
    assert any(a.get("aria-label", "").endswith('A "quoted" one.') for a in page.all("audio"))


def test_ids_are_unique_and_links_arrive(page):
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag in ("a", "use"):
        for attributes in page.all(tag):
            assert (attributes.get("href") or attributes.get("xlink:href")).removeprefix("#") in ids
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_table_numbers_and_bold(page):
    titles = [cell[0] for cell in page.rows[0]]
    assert titles == ["Attention", *(f"{c.heading} {c.unit}" for c in COLUMNS)]
    assert page.rows[1:7] == [
        [("Full precision, W16A16", False)],
        [
            ("vanilla", False),
            ("20.00", True),
            ("1_234.50", True),
            ("30.0", True),
            ("40.0", False),
            ("–", False),
            ("1.0 × 10⁹", True),
            ("∞", False),
        ],
        [
            ("max shift", False),
            ("30.00", False),
            ("1_851.75", False),
            ("45.0", False),
            ("26.7", True),
            ("–", False),
            ("1.5 × 10⁹", False),
            ("3.0", False),
        ],
        [("SmoothQuant W4A4, simulated", False)],
        [
            ("vanilla", False),
            ("40.00", False),
            ("2_469.00", False),
            ("60.0", False),
            ("20.0", True),
            ("−1.2", False),
            ("2.0 × 10⁹", False),
            ("∞", False),
        ],
        [
            ("max shift", False),
            ("30.00", True),
            ("1_851.75", True),
            ("45.0", True),
            ("26.7", False),
            ("−1.2", False),
            ("1.5 × 10⁹", True),
            ("3.0", False),
        ],
    ]


def test_sound_is_inside_the_page(data, page):
    players = page.all("audio")
    assert len(players) == 1 + len(SINKS)
    assert all("controls" in a and a["aria-label"] for a in players)
    kind, content = players[0]["src"].split(",")
    assert kind == "data:audio/wav;base64"
    with wave.open(io.BytesIO(base64.b64decode(content))) as file:
        assert (file.getframerate(), file.getnchannels()) == (16000, 1)
        got = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(got, data.spoken[0].takes[0].sound.waveform, atol=2e-5)


def test_loud_and_broken_samples_do_not_wrap_around(tmp_path):
    loud = Sound(np.array([2.0, -2.0, np.nan, 1.0]), 16000)
    sentence = SpokenSentence("a", [Take("max", loud, "a")])
    write_report(tmp_path / "r.html", ReportData(name="x", description="", made=MADE, spoken=[sentence]))
    content = Page((tmp_path / "r.html").read_text()).all("audio")[0]["src"].split(",")[1]
    with wave.open(io.BytesIO(base64.b64decode(content))) as file:
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [32767, -32767, 0, 32767]


def test_same_data_same_page(data, text, tmp_path):
    write_report(tmp_path / "again.html", data)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_what_is_empty_is_left_out(tmp_path):
    write_report(
        tmp_path / "r.html", ReportData(name="x", description="", made=MADE, curves=[LossCurve("max", [], [])])
    )
    page = Page((tmp_path / "r.html").read_text())
    assert [a["id"] for a in page.all("section")] == ["reading", "run"]
    assert page.all("svg") == []


def test_nothing_is_left_behind_when_it_fails(data, tmp_path):
    broken = dataclasses.replace(data, made={}, heads=(), live=())
    with pytest.raises(Exception, match="date"):
        write_report(tmp_path / "run" / "report.html", broken)
    assert list(tmp_path.iterdir()) == []


def colours(page_text: str, block: str) -> dict[str, str]:
    style = re.search(block, page_text, re.DOTALL).group(1)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", style))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("block", [r"^:root \{(.*?)\}", r"dark\) \{\s*:root \{(.*?)\}"])
def test_contrast_in_light_and_dark(text, block):
    style = text[text.index("<style>") + 8 : text.index("</style>")]
    found = colours(style, block)
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "link"):
            assert contrast(found[ink], found[ground]) >= 4.5, (ink, ground)
        for sink in (name for name in found if name.startswith("sink-")):
            assert contrast(found[sink], found[ground]) >= 3, (sink, ground)
    assert contrast(found["mark-ink"], found["mark"]) >= 4.5


def test_figures_take_their_colours_from_the_page(data):
    for figure in (loss_curves(data.curves), outlier_bars(data.outliers), outlier_curves(data.live)):
        assert figure.startswith("<svg ")
        assert re.findall(r"#[0-9a-f]{6}\b", figure) == []
        for sink in SINKS:
            assert f"var(--sink-{sink})" in figure
        for name in ("vanilla", "max shift", "zero sink", "clipped softmax", "gated attention"):
            assert f">{name}</text>" in figure


def test_files_have_the_colours_of_the_light_page(text):
    found = colours(text, r"\n:root \{(.*?)\}")
    assert FILE.ink == found["ink"]
    assert FILE.grid == found["grid"]
    assert FILE.paper == found["card"]
    assert dict(FILE.sinks) == {sink: found[f"sink-{sink}"] for sink in SINKS}


def test_curves_of_values_far_apart_and_broken_ones():
    figure = outlier_curves([live("none", 1000), live("max", math.nan)])
    assert figure.count("logarithmic scale") == len(LIVE_PANELS) - 1
    assert "100 %" in outlier_curves([live("none", 2), live("max")])


def test_numbers_of_the_curves_are_in_the_page(page):
    assert [
        ("zero sink", False),
        ("10", False),
        ("0.250", False),
        ("0.250", False),
        ("25.0", False),
        ("0.250", False),
    ] in (page.rows)


def test_outlier_bars_hold_every_value_and_survive_broken_ones():
    values = [12.3, 45.6, 7890.0, 33.3, 21.0, 17.0, 5.5, 6.6]
    bars = [
        OutlierBar(s, m, v * (1 + j), 3.0)
        for j, m in enumerate(("text", "speech"))
        for s, v in zip(SINKS, values, strict=True)
    ]
    figure = outlier_bars(bars)
    for bar in bars:
        assert f">{short(bar.maximum_infinity_norm)}</text>" in figure
    assert "logarithmic scale" in figure
    broken = outlier_bars([OutlierBar("none", "text", math.nan, math.inf), OutlierBar("max", "text", 0.0, 3.0)])
    assert broken.startswith("<svg ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (3, "3.00"),
        (45.67, "45.7"),
        (24825, "24\u202f825"),
        (0, "0"),
        (math.inf, "∞"),
        (math.nan, "–"),
    ],
)
def test_three_figures(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (math.inf, "∞"), (1.0, "+1.0"), (-0.26, "−0.3"), (12345.6, "+12\u202f345.6")],
)
def test_numbers_of_the_table(value, text):
    assert _number(value, COLUMNS[4]) == text


def test_differing_words():
    assert _words("It was, the rest", "it was the best of times") == [
        ("It", False),
        ("was,", False),
        ("the", False),
        ("rest", True),
    ]
    assert _words("one three", "one two three") == [("one", False), ("[…]", True), ("three", False)]
    assert _words("", "one") == [("[…]", True)]
    assert _words("one two", None) == [("one", False), ("two", False)]


@given(st.lists(st.sampled_from("abcde"), max_size=8), st.lists(st.sampled_from("abcde"), max_size=8))
@settings(deadline=None, max_examples=80)
def test_words_are_kept_and_the_unmarked_are_common(text, other):
    shown = _words(" ".join(text), " ".join(other))
    assert [word for word, _ in shown if word != "[…]"] == text
    rest = iter(other)
    assert all(word in rest for word, differs in shown if not differs)
    assert any(differs for _, differs in shown) == (text != other)
