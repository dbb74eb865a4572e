from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.schema import dump, key, override, parse, read_yaml


@dataclass(frozen=True, kw_only=True)
class Adapter:
    rank: int = key(8, minimum=1, maximum=64)
    targets: tuple[str, ...] = key(("q",), choices=("q", "k", "v"))


@dataclass(frozen=True, kw_only=True)
class Training:
    name: str = key(pattern="[a-z]+")
    learning_rate: float = key(3e-4, above=0)
    dropout: float = key(0.1, minimum=0, maximum=0.9)
    steps: int | None = key(None, minimum=1)
    shuffle: bool = True
    adapter: Adapter = field(default_factory=Adapter)
    second: Adapter | None = None
    stages: tuple[Adapter, ...] = ()
    weights: dict[str, float] = field(default_factory=dict, metadata={"names": ("asr", "tts"), "minimum": 0})

    def __post_init__(self):
        if self.steps == self.adapter.rank:
            raise UserError(f"steps: {self.steps} (expected another number than adapter.rank)")


def refused(data) -> str:
    with pytest.raises(UserError) as caught:
        parse(Training, data, "demo.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_everything_at_once():
    got = parse(
        Training,
        {
            "name": "a",
            "learning_rate": 1,
            "steps": 5,
            "shuffle": False,
            "adapter": {"rank": 2},
            "second": {"targets": ["q", "v"]},
            "stages": [{}, {"rank": 3}],
            "weights": {"asr": 2},
        },
    )
    assert got == Training(
        name="a",
        learning_rate=1.0,
        steps=5,
        shuffle=False,
        adapter=Adapter(rank=2),
        second=Adapter(targets=("q", "v")),
        stages=(Adapter(), Adapter(rank=3)),
        weights={"asr": 2.0},
    )
    assert isinstance(got.learning_rate, float)
    assert isinstance(got.weights["asr"], float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": -1}, "learning_rate: -1 (expected a number > 0)"),
        ({"learning_rate": 0}, "learning_rate: 0 (expected a number > 0)"),
        ({"learning_rate": "fast"}, 'learning_rate: "fast" (expected a number > 0)'),
        ({"learning_rate": True}, "learning_rate: true (expected a number > 0)"),
        ({"learning_rate": float("nan")}, "learning_rate: NaN (expected a number > 0)"),
        ({"learning_rate": float("inf")}, "learning_rate: Infinity (expected a number > 0)"),
        ({"learning_rate": None}, "learning_rate: null (expected a number > 0)"),
        ({"learning_rate": [1]}, "learning_rate: [1] (expected a number > 0)"),
        ({"dropout": 0.95}, "dropout: 0.95 (expected a number from 0 to 0.9)"),
        ({"steps": 1.5}, "steps: 1.5 (expected a whole number ≥ 1, or null)"),
        ({"steps": True}, "steps: true (expected a whole number ≥ 1, or null)"),
        ({"shuffle": 1}, "shuffle: 1 (expected true or false)"),
        ({"name": "A b"}, 'name: "A b" (expected text of the form [a-z]+)'),
        ({"name": "a\nb"}, 'name: "a\\nb" (expected text of the form [a-z]+)'),
        ({"adapter": 5}, "adapter: 5 (expected keys and values)"),
        ({"adapter": None}, "adapter: null (expected keys and values)"),
        ({"adapter": {"rank": 65}}, "adapter.rank: 65 (expected a whole number from 1 to 64)"),
        ({"adapter": {"targets": "q"}}, 'adapter.targets: "q" (expected a list)'),
        ({"adapter": {"targets": ["q", "w"]}}, 'adapter.targets.1: "w" (expected one of q, k, v)'),
        ({"adapter": {"rnak": 5}}, "adapter.rnak: unknown key (did you mean rank?)"),
        ({"zzz": 5}, "zzz: unknown key (known: adapter, dropout,"),
        ({1: 5}, "1: unknown key (known: "),
        ({"stages": [{}, {"rank": 0}]}, "stages.1.rank: 0 (expected a whole number from 1 to 64)"),
        ({"weights": {"asr": -1}}, "weights.asr: -1 (expected a number ≥ 0)"),
        ({"weights": {"ars": 1}}, "weights.ars: unknown key (did you mean asr?)"),
        ({"weights": 3}, "weights: 3 (expected keys and values)"),
        ({"steps": 8}, "steps: 8 (expected another number than adapter.rank)"),
    ],
)
def test_errors_name_key_value_and_expectation(change, message):
    assert refused({"name": "a", **change}).startswith(f"demo.yaml: {message}")


def test_errors_of_nested_rules_carry_the_whole_path():
    @dataclass(frozen=True)
    class Outer:
        training: Training

    Outer.__annotations__["training"] = Training
    with pytest.raises(UserError, match=r"^x\.yaml: training\.steps: 8 "):
        parse(Outer, {"training": {"name": "a", "steps": 8}}, "x.yaml")


def test_missing_key_and_no_keys_at_all():
    assert refused({}) == "demo.yaml: name: missing (expected text of the form [a-z]+)"
    assert refused(None) == "demo.yaml: null (expected keys and values)"
    assert refused([1]) == "demo.yaml: [1] (expected keys and values)"


def test_long_values_are_cut():
    assert len(refused({"name": "Z" * 1000})) < 200


def test_yaml_numbers_people_write():
    data = read_yaml("a: 3e-4\nb: 1E3\nc: -2.5e+1\nd: 5\ne: .5\nf: none\ng: '3e-4'\nh: e5\n", "x")
    assert data == {"a": 3e-4, "b": 1000.0, "c": -25.0, "d": 5, "e": 0.5, "f": "none", "g": "3e-4", "h": "e5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"^x\.yaml: line 2: key given twice: a"),
        ("a: [1\nb: 2\n", r"^x\.yaml: line 2: .*expected YAML"),
        ("a: !!python/object/apply:os.system ['true']", r"^x\.yaml: line 1: could not determine a constructor"),
        ("a: \x00", r"^x\.yaml: .*expected YAML"),
        ("? [a]\n: 1", r"^x\.yaml: line 1: .*expected YAML"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(text, "x.yaml")
    assert "\n" not in str(caught.value)


def test_overrides_reach_mappings_lists_and_what_is_absent():
    data = {"a": {"a": 1}, "sources": [{"limit": 1}, {}], "lora": None}
    for assignment in (
        "a.a=2",
        "sources.1.limit=7",
        "sources.2={limit: 3}",
        "lora.rank=8",
        "x.y.z=[1, 2]",
        "text=a=b",
        "none=",
        "rate=1e-3",
    ):
        data = override(data, assignment)
    assert data == {
        "a": {"a": 2},
        "sources": [{"limit": 1}, {"limit": 7}, {"limit": 3}],
        "lora": {"rank": 8},
        "x": {"y": {"z": [1, 2]}},
        "text": "a=b",
        "none": None,
        "rate": 1e-3,
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "'steps' .expected key=value"),
        ("=5", "expected key=value"),
        ("a..b=5", "expected key=value"),
        ("list.3=5", r"list\.3=5: 3 is not a place in a list of 2"),
        ("list.2.a=5", r"list\.2\.a=5: 2 is not a place in a list of 2"),
        ("list.x=5", r"list\.x=5: x is not a place"),
        ("name.first=5", r"name\.first=5: unknown key"),
        ("a=[1", r"^a=\[1: line 1"),
    ],
)
def test_overrides_that_lead_nowhere(assignment, message):
    with pytest.raises(UserError, match=message):
        override({"list": [1, 2], "name": "x"}, assignment)


adapters = st.builds(
    Adapter,
    rank=st.integers(1, 64),
    targets=st.lists(st.sampled_from(["q", "k", "v"]), max_size=3).map(tuple),
)
trainings = st.builds(
    Training,
    name=st.from_regex("[a-z]+", fullmatch=True),
    learning_rate=st.floats(1e-9, 1e9),
    steps=st.none() | st.integers(65, 10**9),
    shuffle=st.booleans(),
    adapter=adapters,
    second=st.none() | adapters,
    stages=st.lists(adapters, max_size=3).map(tuple),
    weights=st.dictionaries(st.sampled_from(["asr", "tts"]), st.floats(0, 10)),
)


@given(trainings)
@settings(deadline=None, max_examples=60)
def test_dump_and_parse_are_inverse(training):
    assert parse(Training, dump(training)) == training


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([None, "name", "learning_rate", "steps", "shuffle", "adapter", "second", "stages", "weights"]),
)
@settings(deadline=None, max_examples=200)
def test_any_data_is_either_understood_or_refused_in_one_line(data, place):
    data = data if place is None else {"name": "a", place: data}
    try:
        got = parse(Training, data, "demo.yaml")
    except UserError:
        assert refused(data).startswith("demo.yaml: ")
    else:
        assert parse(Training, dump(got)) == got
