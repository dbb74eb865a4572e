"""``sparq evaluate`` and ``sparq outliers``."""

from __future__ import annotations

import json


def test_evaluate_a_vocoder_alone(sparq, tiny_run, corpus, tmp_path):
    asked = ("evaluate", corpus, "--vocoder", tiny_run.folder.parent / "voice", "--sentences", 2)
    code, out, err = sparq(*asked, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["utterances"] == 2  # of those held out, whose audio is kept where any is
    assert set(told["wer"]) == {"recordings", "raw units", "merged units"}
    assert told["distance"]["raw units"]["mel_cepstral_distortion"] > 1
    code, out, err = sparq(*asked)
    assert (code, err) == (0, "")
    assert [line[:12] for line in out.splitlines()[:4]] == [
        "2 utterances",
        "recordings  ",
        "raw units   ",
        "merged units",
    ]


def test_evaluate_and_outliers(sparq, tiny_run, lm, corpus, tmp_path):
    asked = ("evaluate", corpus, "--model", lm, "--sentences", 3, "--max-pieces", 12)
    code, out, err = sparq(*asked, "--source", "tiny", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    row = next(row for row in tiny_run.rows if (row["sink"], row["bits"]) == ("max", "W16A16"))
    assert told["scores"] == {name: row[name] for name in told["scores"]}  # what the run measured
    code, out, _ = sparq("outliers", corpus, "--model", lm, "--sentences", 3, "--json")
    assert code == 0
    given = json.loads(out)
    shares = {kind: one.pop("sinks")["first_token_attention"] for kind, one in given["measured"].items()}
    assert given["measured"] == told["outliers"]
    assert all(0 < share < 1 for share in shares.values())
    assert given["made"]["commit"]
    assert told["outliers"]["speech with text"]["maximum_infinity_norm"] == row["maximum_infinity_norm"]
    _, out, _ = sparq("outliers", corpus, "--model", lm, "-o", "where.html")
    heads = ("text, 4 sequences", "speech, 4 sequences", "speech with text, 4 sequences")
    assert [line for line in out.splitlines() if "sequences" in line] == list(heads)
    assert out.splitlines()[-1] == "where.html"
    assert "<svg " in (tmp_path / "where.html").read_text()


def test_outliers_of_any_language_model_on_text(sparq, tmp_path):
    """A transformers model with a tokenizer of its own, on windows of a text file."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "lm")
    GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=8, n_layer=2, n_head=2)).save_pretrained(tmp_path / "lm")
    (tmp_path / "book.txt").write_text("a b b a\n\nb a a b a a\n" * 4)
    asked = ("outliers", "book.txt", "--model", "lm", "--length", 9, "-o", "where.svg")
    code, out, err = sparq(*asked, "--json")
    assert (code, err) == (0, "")
    (one,) = json.loads(out)["measured"].values()
    assert (one["sequences"], len(one["infinity_norms"]), len(one["sinks"]["by_head"])) == (4, 11, 2)
    assert (tmp_path / "where.svg").read_text().startswith("<?xml")
    code, out, _ = sparq(*asked, "--sentences", 2)
    assert "text, 2 sequences" in out
    code, _, err = sparq(*asked[:-2], "--length", 99)
    assert code == 2
    assert "the text has 40 pieces" in err
