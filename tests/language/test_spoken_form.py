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
    "3/4 cup, 5/8 of it, 24/7": "three quarters cup, five eighths of it, twenty four seven",
    "10-20 men at -5 °": "ten to twenty men at minus five degrees",
    "No. 7? no. 20%-30%": "number seven? no. twenty percent to thirty percent",
    "AT&T, MP3, a@b": "AT and T, MP three, a at b",
    "version 1.2.3": "version one point two point three",
    "7:00am, 9:05PM, 7am and 4:30-5:30": "seven am, nine oh five PM, seven am and four thirty to five thirty",
    "$5M, $1.5M, \u00a33k, $2B, $2bn and 5bn": "five million dollars, one point five million dollars, "
    "three thousand pounds, two billion dollars, two billion dollars and five billion",
    "$.99, .5, \u00a5.50, 42\u00a2, 1\u00a2": "ninety nine cents, point five, point five zero yen, forty two cents, one cent",
    "-$5, $-5, US$5, $20/hour": "minus five dollars, minus five dollars, five US dollars, twenty dollars per hour",
    "$5-10, $5-$10, $5\u201310 million": "five to ten dollars, five to ten dollars, five to ten million dollars",
    "$1.50-$2.50": "one dollar and fifty cents to two dollars and fifty cents",
    "$10 - $3 = $7, 5 - 3 = 2, 5\u22123, 1e-5": "ten dollars minus three dollars equals seven dollars, "
    "five minus three equals two, five minus three, one e minus five",
    "2 1/2 cups, 1-3/4, 5\u00bd, 1 1/8": "two and a half cups, one and three quarters, five and a half, "
    "one and an eighth",
    "5 1/2-6 1/2": "five and a half to six and a half",
    "1/3, 2/3, 7/8ths, 1/12, 9/11": "one third, two thirds, seven eighths, one over twelve, nine eleven",
    "the 2000s, 1900s, 1990s-2000s, 747s, 1,000s": "the two thousands, nineteen hundreds, "
    "nineteen nineties to two thousands, seven hundred forty sevens, thousands",
    "2024's best, class of '05": "twenty twenty four's best, class of oh five",
    "2024-05-06, May 5, 2024, Dec. 3-5, 5 May 2024": "may sixth twenty twenty four, May fifth, twenty twenty four, "
    "december third to fifth, the fifth of May twenty twenty four",
    "May 2024, may 5 come? June 5:30": "May twenty twenty four, may five come? June five thirty",
    "10%-15%, 1st-3rd, 1990-95, 2004-05": "ten percent to fifteen percent, first to third, "
    "nineteen ninety to ninety five, two thousand four to oh five",
    "5'10\", 6\u2019 2\u201d": "five foot ten, six foot two",
    "20\u00b0C, 68 \u00b0F, 1\u00b0, -5\u00b0C": "twenty degrees celsius, sixty eight degrees fahrenheit, one degree, "
    "minus five degrees celsius",
    "5kg, 1 kg, 5-kg, 3.5 GHz, 100km/h, 6 ft, 3 m\u00b2": "five kilograms, one kilogram, five kilogram, "
    "three point five gigahertz, one hundred kilometers per hour, six feet, three square meters",
    "4x4, 3x faster, 3 x 4 = 12, 2x + 3": "four by four, three times faster, three times four equals twelve, "
    "two x plus three",
    "x\u00b2, ~5, <5, \u00b15": "x squared, about five, less than five, plus or minus five",
    "1-800-555-1234, 555.123.4567": "one eight zero zero five five five one two three four, "
    "five five five one two three four five six seven",
    "+44 20 7946 0958": "plus four four two zero seven nine four six zero nine five eight",
    "123-45-6789, 10-5-1": "one two three four five six seven eight nine, ten five one",
    "World War II, Chapter IV, Henry VIII, Part I": "World War two, Chapter four, Henry the eighth, Part I",
    "pp. 5-10, Fig. 3": "pages five to ten, figure three",
    "a.b@c.com, www.bbc.co.uk.": "a dot b at c dot com, www dot bbc dot co dot uk.",
    "x^2, 2^16, 10^-3, 50-50, 2 tsp": "x squared, two to the sixteen, ten to the minus three, fifty fifty, two teaspoons",
    "#metoo, C#": "hashtag metoo, C sharp",
    "He said so. Then he left, e.g. by train, etc.": "He said so. Then he left, for example by train, et cetera",
}
WRITTEN = [form for said in SAID for form in said.split()]


@pytest.mark.parametrize("written", SAID)
def test_it_is_written_as_it_is_said(written):
    assert spoken_form(written) == SAID[written]


@pytest.mark.parametrize(
    "text",
    [
        "It's well known - isn't it?",
        "The U.S. Senate (Mr. Smith) sat.",
        "",
        "on, st, no",
        "Part I, Malcolm X, William L. Shirer",
    ],
)
def test_words_stay_what_they_are(text):
    assert spoken_form(text) == text


@given(st.text(alphabet="0123456789.,:/-$£%&#@+= ()'abSt\u2019\u2013", max_size=30))
def test_letters_are_all_that_is_left(text):
    """Whatever stands between figures, nothing but words is written, and writing them again changes nothing."""
    written = normalise_text(text, "letters")
    assert not any(sign.isdigit() for sign in written)
    assert normalise_text(written, "letters") == written
    assert spoken_form(spoken_form(text)) == spoken_form(text)


@given(
    st.lists(st.tuples(st.sampled_from(WRITTEN), st.sampled_from(["", " ", ", ", "-", " - ", "/", ".", "\u2013", "("])))
)
def test_no_figure_is_left_of_a_mixture(parts):
    """Forms that touch each other in any way are written out at once and whole."""
    text = "".join(form + between for form, between in parts)
    written = spoken_form(text)
    assert not any(sign.isnumeric() for sign in written)
    assert spoken_form(written) == written
    assert normalise_text(normalise_text(text, "letters"), "letters") == normalise_text(text, "letters")


@given(st.integers(0, 10**15 - 1))
def test_numbers_with_commas_are_said_whole(number):
    words = spoken_form(f"{number:,}")
    assert words.replace(" ", "").isalpha()
    if number >= 1000 and number % 1000 == 0:
        assert words.split()[-1] in {"thousand", "million", "billion", "trillion"}


@pytest.mark.parametrize("form", ["{}", "{}.5", "${}", "{}th", "1/{}", "-{}", "{}%", "1,000,000{}"])
@pytest.mark.parametrize("length", [36, 37, 40, 5000])
def test_numbers_without_a_name_are_said_figure_by_figure(form, length):
    said = spoken_form(form.format("7" * length))
    assert not any(sign.isnumeric() for sign in said)
    if length > 36:
        assert said.count("seven") == length
