"""Callgrind's format: the recorded profile, small files written by hand, and every way to get it wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu.program import ProgramError
from vpmu.program.callgrind import EVENTS, FunctionKey, read_callgrind

Writer = Callable[[str], Path]

FTEST = Path(__file__).parents[2] / "examples" / "ftest" / "callgrind.out.ftest"

HEAD = f"""\
# callgrind format
version: 1
creator: callgrind-3.19.0
cmd: ./twice 7
part: 1

positions: line
events: {" ".join(EVENTS)}
"""

# main (lines 10, 13, 12, 12) calls leaf of another object twice; leaf calls itself once.
BODY = """\
ob=(1) ./twice
fl=(1) twice.c
fn=(1) main
10 100 20 10
+3 50
cob=(2) /lib/libleaf.so
cfi=(2) leaf.c
cfn=(2) leaf
calls=2 5
-1 80 16 0 0 1
* 7

ob=(2)
fl=(2)
fn=(2)
0x5 60 12 0 0 1
fi=(3) leaf.h
+1 20 4
fe=(2)
cfn=(2)
calls=1 5
7 40 8
"""
TOTALS = "totals: 237 36 10 0 1\n"
SMALL = HEAD + BODY + TOTALS

MAIN = FunctionKey("./twice", "main")
LEAF = FunctionKey("/lib/libleaf.so", "leaf")


def cost(**events: int):
    return tuple(events.get(name, 0) for name in EVENTS)


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "callgrind.out.1"
        path.write_text(text)
        return path

    return write


def header_numbers(key: str):
    match = re.search(rf"^{key}: ([\d ]+)$", FTEST.read_text(), re.MULTILINE)
    assert match is not None
    return tuple(int(word) for word in match[1].split())


def test_the_recorded_profile_adds_up_to_its_summary():
    profile = read_callgrind(FTEST)
    assert profile.totals() == header_numbers("totals")
    assert profile.summary == header_numbers("summary")
    together = zip(profile.totals(), profile.unattributed(), strict=True)
    assert tuple(map(sum, together)) == header_numbers("summary")


def test_the_recorded_profile_says_who_calls_whom():
    profile = read_callgrind(FTEST)
    ftest = next(key.object for key in profile.self_cost if key.name == "qux")
    calls = {
        name: profile.arcs[FunctionKey(ftest, "main"), FunctionKey(ftest, name)].calls
        for name in ("foo", "bar", "qux")
    }
    rounds = int(profile.command.split()[-1])
    assert calls == {"foo": rounds, "bar": rounds, "qux": rounds}


def test_the_recorded_profile_names_no_path_of_its_machine():
    objects = {key.object for key in read_callgrind(FTEST).self_cost}
    assert {name for name in objects if name.startswith("/") and not name.startswith("/usr/lib")} == set()
    assert "./ftest" in read_callgrind(FTEST).command


def test_names_positions_and_calls_of_a_small_file(write: Writer):
    profile = read_callgrind(write(SMALL))
    assert profile.command == "./twice 7"
    assert profile.self_cost == {MAIN: cost(Ir=157, Dr=20, Dw=10), LEAF: cost(Ir=80, Dr=16, D1mr=1)}
    assert {arc: (found.calls, found.cost) for arc, found in profile.arcs.items()} == {
        (MAIN, LEAF): (2, cost(Ir=80, Dr=16, D1mr=1)),
        (LEAF, LEAF): (1, cost(Ir=40, Dr=8)),
    }
    assert profile.summary is None
    assert profile.unattributed() == cost()


def test_names_may_be_written_out_and_positions_be_instructions(write: Writer):
    text = SMALL.replace("positions: line", "positions: instr line")
    text = re.sub(r"^(0x\d+|[-+]?\d+|\*)(?= \d)", r"0x400 \1", text, flags=re.MULTILINE)
    text = re.sub(r"calls=(\d) ", r"calls=\1 0x400 ", text)
    text = re.sub(r"(?<=fn=)\(2\)$", "leaf", text, flags=re.MULTILINE)
    text = re.sub(r"\(\d\) ?(?=\S)", "", text)
    text = text.replace("ob=(2)", "ob=/lib/libleaf.so").replace("=(2)", "=leaf.c")
    assert "(" not in text
    assert read_callgrind(write(text)) == read_callgrind(write(SMALL))


def test_a_name_in_parentheses_is_no_compressed_one(write: Writer):
    profile = read_callgrind(write(SMALL.replace("(1) main", "(1) (below main)")))
    assert FunctionKey("./twice", "(below main)") in profile.self_cost


def test_events_may_come_in_any_order_with_others_between(write: Writer):
    order = ["sysCount", *reversed(EVENTS)]
    numbers = " ".join(str(index) for index in range(len(order)))
    text = HEAD.replace(" ".join(EVENTS), " ".join(order)) + f"fn=f\n1 {numbers}\ntotals: {numbers}\n"
    assert read_callgrind(write(text)).totals() == tuple(range(len(EVENTS), 0, -1))


def test_jumps_are_passed_over(write: Writer):
    text = SMALL.replace("+3 50\n", "jcnd=4/9 +2\n*\njump=3 +1\n*\n+3 50\n")
    assert read_callgrind(write(text)) == read_callgrind(write(SMALL))


def test_parts_are_added_and_may_name_anew(write: Writer):
    other = {"1": "2", "2": "1", "3": "3"}
    second = re.sub(r"\((\d)\)", lambda match: f"({other[match[1]]})", SMALL)
    once, twice = read_callgrind(write(SMALL)), read_callgrind(write(SMALL + second))
    assert twice.totals() == tuple(2 * events for events in once.totals())
    assert twice.arcs[MAIN, LEAF].calls == 4


def test_what_the_summary_counts_and_no_function_does(write: Writer):
    text = SMALL.replace("ob=(1) ./twice", "summary: 239 36 10 1 1\nob=(1) ./twice")
    assert read_callgrind(write(text)).unattributed() == cost(Ir=2, I1mr=1)


def line_of(text: str, needle: str):
    return text[: text.index(needle)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        (TOTALS, "", "7 40 8", 'the file ends before the part\'s "totals:" line; is it truncated?'),
        (TOTALS, "totals: 237 36 10 0", "totals", "the costs of D1mr add up to 1, the totals line says 0"),
        ("-1 80 16 0 0 1\n", "-1 80 16 0 0 1", "-1 80", 'expected a count, found "1*"'),
        ("7 40 8\n", "", "totals", 'expected the cost line of the last "calls=", found totals'),
        ("-1 80 16 0 0 1\n", "", "totals", "the costs of Ir add up to 230, the totals line says 237"),
        ("cfn=(2)\ncalls=1", "calls=1", "calls=1", '"calls=" without a "cfn=" before it'),
        ("calls=2 5", "calls=2", "calls=2", 'expected "calls=COUNT POSITION", found "calls=2"'),
        ("calls=2 5", "calls=two 5", "calls=two", 'expected "calls=COUNT POSITION", found "calls=two 5"'),
        ("fn=(2)\n0x5", "fn=(3)\n0x5", "fn=(3)\n0x5", "(3) names no function yet"),
        ("ob=(2)\nfl", "ob=(1) other\nfl", "ob=(1) other", "(1) is object ./twice already, found other"),
        ("10 100 20 10", "10 100 2o 10", "10 100", 'expected a count, found "2o"'),
        ("10 100 20 10", "10 " + "1 " * 14, "10 1 ", "expected at most 13 costs, found 14"),
        ("10 100 20 10", "-1 100 20 10", "-1 100", 'position "-1" is relative to before line 0'),
        ("fn=(1) main\n", "", "10 100", 'a cost line without a "fn=" before it'),
        ("fi=(3)", "ff=(3)", "ff=(3)", 'unknown key "ff="'),
        ("* 7", "what is this", "what", 'found "what is this"'),
        ("version: 1", "version: 2", "version", "expected format version 1, found 2"),
        ("positions: line", "positions: bb", "positions", "expected positions"),
        (f"events: {' '.join(EVENTS)}\n", "", "ob=(1)", "expected an \"events:\" line first"),
        (" Bc Bcm Bi Bim", "", "events", "the profile has no Bc, Bcm, Bi, Bim"),
        (" Dr Dw I1mr", "", "events", "--cache-sim=yes was missing"),
        ("events: Ir ", "events: Us ", "events", "the profile has no Ir"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_its_line(write: Writer, old: str, new: str, at: str, message: str):
    text = SMALL.replace(old, new, 1)
    assert text != SMALL
    path = write(text)
    with pytest.raises(ProgramError) as caught:
        read_callgrind(path)
    assert message in str(caught.value)
    assert caught.value.file == f"{path}:{line_of(text, at)}"


@pytest.mark.parametrize("text", ["", "# callgrind format\n", "hello\n", "\x7fELF\0\0\n", "{}\n"])
def test_what_is_no_profile_is_refused(write: Writer, text: str):
    with pytest.raises(ProgramError, match=r"callgrind\.out\.1:\d"):
        read_callgrind(write(text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ProgramError, match=r"absent: cannot read: No such file"):
        read_callgrind(tmp_path / "absent")


@given(st.integers(0, len(SMALL) - 2))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int):
    path = tmp_path_factory.getbasetemp() / "callgrind.out.cut"
    path.write_text(SMALL[:length])
    with pytest.raises(ProgramError, match=r"callgrind\.out\.cut:\d+: "):
        read_callgrind(path)


def test_the_recorded_profile_cut_anywhere_is_refused(tmp_path: Path):
    data = FTEST.read_bytes()
    path = tmp_path / "callgrind.out.cut"
    for eighths in range(8):
        path.write_bytes(data[: len(data) * eighths // 8])
        with pytest.raises(ProgramError, match="truncated"):
            read_callgrind(path)
