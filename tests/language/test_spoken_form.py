"""What is written in figures and signs, as it is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparq.language.spoken_form import spoken_form
from sparq.language.writing import normalise_text

SAID = {
    "I have 42 apples and 3.5 pears.": "I have forty two apples and three point five pears.",
    "It costs $19.99, i.e. about 15%.": "It costs nineteen dollars and ninety nine cents, that is about fifteen percent.",
    "Dr. Smith met him on St. James St. at 5:30 p.m.": "doctor Smith met him on saint James street at five thirty p.m.",
    "In 1999, 1905, 1900, 2000, 2005 and 2026.": "In nineteen ninety nine, nineteen oh five, nineteen hundred, "
    "two thousand, two thousand five and twenty twenty six.",
    "the 1990s and the '80s": "the nineteen nineties and the eighties",
    "12:00, 5:00 pm and 7:05": "twelve o'clock, five pm and seven oh five",
    "1st 2nd 3rd 21st 100th": "first second third twenty first one hundredth",
    "1,000,000 people, 1,234 men": "one million people, one thousand two hundred thirty four men",
    "$5 million, $2.5 billion, $1, £1.02": "five million dollars, two point five billion dollars, one dollar, "
    "one pound and two pence",
    "$0, £0.50, $2.5, $3.125 billion, $7\u00a0million": "zero dollars, fifty pence, two point five dollars, "
    "three point one two five billion dollars, seven million dollars",
    "007 called 555-1234.": "zero zero seven called five five five one two three four.",
    "3/4 cup, 5/8 of it, 24/7": "three quarters cup, five over eight of it, twenty four seven",
    "10-20 men at -5 °": "ten to twenty men at minus five degrees",
    "No. 7? no. 20%-30%": "number seven? no. twenty percent to thirty percent",
    "AT&T, MP3, a@b": "AT and T, MP three, a at b",
    "version 1.2.3": "version one point two point three",
    "He said so. Then he left, e.g. by train, etc.": "He said so. Then he left, for example by train, et cetera",
}


@pytest.mark.parametrize("written", SAID)
def test_it_is_written_as_it_is_said(written):
    assert spoken_form(written) == SAID[written]


@pytest.mark.parametrize("text", ["It's well known - isn't it?", "The U.S. Senate (Mr. Smith) sat.", "", "on, st, no"])
def test_words_stay_what_they_are(text):
    assert spoken_form(text) == text


@given(st.text(alphabet="0123456789.,:/-$£%&#@+= ()'abSt\u2019\u2013", max_size=30))
def test_letters_are_all_that_is_left(text):
    """Whatever stands between figures, nothing but words is written, and writing them again changes nothing."""
    written = normalise_text(text, "letters")
    assert not any(sign.isdigit() for sign in written)
    assert normalise_text(written, "letters") == written
    assert spoken_form(spoken_form(text)) == spoken_form(text)


@given(st.integers(0, 10**15 - 1))
def test_numbers_with_commas_are_said_whole(number):
    words = spoken_form(f"{number:,}")
    assert words.replace(" ", "").isalpha()
    if number >= 1000 and number % 1000 == 0:
        assert words.split()[-1] in {"thousand", "million", "billion", "trillion"}
