"""Records, spools, images and files for themselves, read back by a reader of the tests' own."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vpmu.perfdata.reader import read_elf, read_perf_data
from tests.vpmu.perfdata.tool import needs_perf, perf
from vpmu.errors import UserError
from vpmu.kernels.events import parse_event
from vpmu.perfdata.attr import event_code
from vpmu.perfdata.elf import Symbol, make_image
from vpmu.perfdata.encode import LOST
from vpmu.perfdata.features import System
from vpmu.perfdata.layout import FINISHED_ROUND, HEADER_BYTES, PerfFile
from vpmu.perfdata.plan import Place, PlannedSession, Task
from vpmu.perfdata.spool import Spool, merged
from vpmu.perfdata.symbols import file_name, kernel_image, program_objects, write_tree
from vpmu.perfdata.writer import RecordFile
from vpmu.program.model import Function, Phase, Program, Segment
from vpmu.scenario.model import Session, Vm
from vpmu.units import Duration

Row = tuple[int, int, int, int, int, int, bool]
"""Time, ip, period, event, task, chain, user."""
Streams = list[list[Row]]
WORD = st.integers(0, 2**64 - 1)
SYSTEM = System("guest", "5.0.0", 2, "a CPU", "GenuineIntel,6,79,1")


def program(*names: str, chains: tuple[tuple[int, ...], ...] = ((0,),), address: int = 0x401000) -> Program:
    functions = tuple(Function(name, address + 64 * index, 64, "p") for index, name in enumerate(names))
    segments = tuple(
        Segment(10, chain[-1], index, functions[chain[-1]].address) for index, chain in enumerate(chains)
    )
    return Program(1, "p", "made for a test", functions, chains, (Phase("loop", 1, segments),))


def planned(events: tuple[str, ...], cpus: int) -> PlannedSession:
    granularity = Duration(1)
    vm = Vm("guest", "host", granularity, granularity, granularity, vcpus=cpus)
    tasks = tuple(Task(f"t{cpu}", "p", 1000, 1000 + cpu, cpu, 1, 0) for cpu in range(cpus))
    places = tuple(Place(cpu, 100 + cpu, 0, "s", "") for cpu in range(cpus))
    specs = tuple(parse_event(event) for event in events)
    spec = Session("s", "record", events, cpu=True, period=1000)
    return PlannedSession("guest", vm, spec, specs, places, tasks, tasks)


def record_file(directory: Path, session: PlannedSession, made: Program, buffered: int = 8192) -> RecordFile:
    kernel = kernel_image("[kernel]")
    objects = program_objects({"p": made})
    write_tree(directory / "symfs", kernel, objects["p"])
    return RecordFile(directory, session, SYSTEM, {"p": made}, objects, kernel, 10**12, buffered)


@st.composite
def sample_streams(draw: st.DrawFn):
    """Draw (at_ns, ip, period, event, task, chain, user) of each of two vCPUs, in the order of time."""
    sample = st.tuples(
        st.integers(0, 50), WORD, WORD, st.integers(0, 1), st.integers(0, 1), st.integers(0, 2), st.booleans()
    )
    return [sorted(draw(st.lists(sample, max_size=40)), key=lambda row: row[0]) for _ in range(2)]


def words_of(stream: list[Row]):
    rows = [
        [4, at, 0, n, ip, period, chain << 32, task | event << 16 | 3 * user << 48]
        for n, (at, ip, period, event, task, chain, user) in enumerate(stream)
    ]
    return np.array(rows, dtype=np.uint64).reshape(-1, 8)


@settings(max_examples=60, deadline=None)
@given(
    streams=sample_streams(), cut=st.integers(1, 50), cpus=st.sampled_from([1, 2]), events=st.integers(1, 2)
)
def test_samples_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, streams: Streams, cut: int, cpus: int, events: int
):
    chains = ((0,), (0, 1), (0, 1, 2))
    made = program("a", "b", "c", chains=chains)
    streams = [[(*row[:3], row[3] % events, *row[4:]) for row in stream] for stream in streams[:cpus]]
    directory = tmp_path_factory.mktemp("file")
    file = record_file(directory, planned(("cycles", "branches")[:events], cpus), made, buffered=7)
    for place, stream in enumerate(streams):
        words = words_of(stream)
        for first in range(0, len(words), cut):
            file.add(place, words[first : first + cut])
    file.close()
    found = read_perf_data(directory / "guest.s.data")
    assert list(directory.glob(".*")) == []
    ids = {event * cpus + cpu + 1: (event, cpu) for event in range(events) for cpu in range(cpus)}
    wanted = []
    for at, cpu, _, row in sorted(
        (r[0], cpu, n, r) for cpu, s in enumerate(streams) for n, r in enumerate(s)
    ):
        _, ip, period, event, task, chain, user = row
        callers = [0x401000 + 64 * f + 32 for f in reversed(chains[chain][:-1])] if user else []
        context = -512 if user else -128
        wanted.append(
            (at, cpu, ip, period, event, 1000 + cpu if task else 0, [context % 2**64, ip, *callers])
        )
    assert [
        (s["time"], s["cpu"], s["ip"], s["period"], ids[s.get("id", 1)][0], s["tid"], s["chain"])
        for s in found.of("sample")
    ] == wanted


@settings(max_examples=100, deadline=None)
@given(
    streams=st.lists(st.lists(st.integers(0, 30), max_size=60), min_size=1, max_size=4),
    chunk=st.integers(1, 9),
)
def test_spools_are_merged_by_time_vcpu_and_sequence(
    tmp_path_factory: pytest.TempPathFactory, streams: list[list[int]], chunk: int
):
    directory = tmp_path_factory.mktemp("spools")
    spools = []
    for cpu, times in enumerate(streams):
        rows = [[4, at, cpu, n, 0, 0, 0, 0] for n, at in enumerate(sorted(times))]
        spools.append(Spool(directory / str(cpu)))
        spools[-1].append(np.array(rows, dtype=np.uint64).reshape(-1, 8))
    parts = [(batch[:, 1:4], cpus) for batch, cpus in merged(spools, chunk)]
    got = [tuple(row) for batch, _ in parts for row in batch.tolist()]
    assert [at for at, _, _ in got] == sorted(at for times in streams for at in times)
    for cpu, times in enumerate(streams):
        assert [n for _, c, n in got if c == cpu] == list(range(len(times)))
    assert all(int(c) == row[1] for batch, cpus in parts for row, c in zip(batch.tolist(), cpus, strict=True))
    assert all(len(batch) <= 2 * chunk * len(streams) for batch, _ in parts)


@needs_perf
def test_lost_samples_are_noticed(tmp_path: Path):
    file = record_file(tmp_path, planned(("cycles", "branches"), 1), program("a"))
    sample = [4, 100, 0, 1, 0x401000, 10, 0, 1 | 3 << 48]
    lost = [int(LOST), 200, 0, 2, 1, 42, 1, 0]
    file.add(0, np.array([sample, lost, [4, 300, *sample[2:]]], dtype=np.uint64))
    file.close()
    found = read_perf_data(tmp_path / "guest.s.data")
    assert [(each["event"], each["lost"], each["time"], each["tid"]) for each in found.of("lost")] == [
        (2, 42, 200, 1000)
    ]
    for command in (("report", "--stdio", "--sort", "sym"), ("script",)):
        done = perf(*command, "-i", "guest.s.data", "--symfs", "symfs", cwd=tmp_path)
        assert done.returncode == 0
        # perf's own notice, and nothing else.
        notice = r"Warning:\nProcessed \d+ events and lost 1 chunks!\n\nCheck IO/CPU overload!\n\n"
        assert re.fullmatch(notice, done.stderr)


def test_functions_far_apart_have_sections_of_their_own(tmp_path: Path):
    symbols = [
        Symbol("low", 0x401010, 100),
        Symbol("high", 0x7F00_0000_0100, 0),
        Symbol("near", 0x401080, 5000),
    ]
    image = make_image(symbols, is_library=True)
    path = tmp_path / "image"
    path.write_bytes(image.content)
    found = read_elf(path)
    assert found.build_id == image.build_id
    low, high = image.mappings
    assert (low.address, low.size, high.address, high.size) == (0x401000, 0x2000, 0x7F00_0000_0000, 0x1000)
    # As perf resolves: address - start + offset of the mapping is the place in the file.
    assert found.symbols == {
        "low": (0x10 + low.file_offset, 100),
        "near": (0x80 + low.file_offset, 5000),
        "high": (0x100 + high.file_offset, 1),
    }
    assert low.file_offset % 4096 == high.file_offset % 4096 == 0


def test_an_image_is_known_by_its_functions():
    one, same = (make_image([Symbol("f", 0x1000, 8)]) for _ in range(2))
    other = make_image([Symbol("f", 0x1000, 9)])
    assert one.build_id == same.build_id != other.build_id


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("libc.so.6", "libc.so.6"),
        ("/usr/lib/x.so", "x.so"),
        ("../../etc/passwd", "passwd"),
        ("..", "_.."),
        ("a/", "_"),
        ("[spin]", "spin"),
        ("two words", "two_words"),
    ],
)
def test_file_names_stay_in_their_tree(name: str, wanted: str):
    assert file_name(name) == wanted


def test_functions_of_no_object_are_the_programs(tmp_path: Path):
    functions = (Function("f", 0x401000, 16, "tool"), Function("g", 0x7F00_0000_0000, 16))
    made = Program(1, "tool", "test", functions, ((0,),), (Phase("loop", 1, (Segment(1, 0, 0, 0x401000),)),))
    (only,) = program_objects({"tool": made})["tool"]
    assert only.path == "/opt/tool/tool"
    assert len(only.image.mappings) == 2


@pytest.mark.parametrize(
    ("address", "size", "problem"),
    [
        (-1, 16, "no image can hold function f: 16 bytes at -0x1"),
        (1 << 63, 16, "no image can hold function f"),
        (0, -5, "no image can hold function f: -5 bytes"),
        (0, 1 << 40, "have 1099511627776 bytes"),
    ],
)
def test_functions_that_no_image_can_hold_are_named(address: int, size: int, problem: str):
    functions = (Function("f", address, size, "tool"),)
    made = Program(1, "tool", "test", functions, ((0,),), (Phase("loop", 1, (Segment(1, 0, 0, 0),)),))
    with pytest.raises(UserError, match=f"--perf-data: key tool: .*{problem}"):
        program_objects({"tool": made})


def test_names_that_are_no_text_are_written_all_the_same(tmp_path: Path):
    image = make_image([Symbol("a\0b\ud800c", 0x1000, 8)])
    (tmp_path / "image").write_bytes(image.content)
    assert list(read_elf(tmp_path / "image").symbols) == ["a?b?c"]


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        ("cpu-cycles", (0, 0)),
        ("branches:u", (0, 4)),
        ("ref-cycles", (0, 9)),
        ("L1-dcache-loads", (3, 0)),
        ("L1-dcache-load-misses", (3, 1 << 16)),
        ("dTLB-store-misses", (3, 3 | 1 << 8 | 1 << 16)),
        ("branch-load-misses", (3, 5 | 1 << 16)),
        ("r00c4", (4, 0xC4)),
        ("l1d_pend_miss.pending", (4, 0x148)),
    ],
)
def test_events_have_perfs_numbers(event: str, wanted: tuple[int, int]):
    # PERF_TYPE_HARDWARE is 0, HW_CACHE 3 (cache | operation << 8 | result << 16), RAW 4.
    assert event_code(event, parse_event(event).config) == wanted


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path):
    file = PerfFile(tmp_path / "new" / "x.data", [bytes(128)], [[7]])
    file.write(FINISHED_ROUND)
    assert not (tmp_path / "new" / "x.data").exists()
    file.close({12: b"abc"})
    data = (tmp_path / "new" / "x.data").read_bytes()
    assert struct.unpack_from("<Q", data, HEADER_BYTES) == (7,)
    assert data.endswith(b"abc")
    other = PerfFile(tmp_path / "y.data", [bytes(128)], [[7]])
    other.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"x\.data: cannot write: "):
        PerfFile(tmp_path / "taken" / "x.data", [bytes(128)], [[1]])
    with pytest.raises(UserError, match=r"vmlinux: cannot write: "):
        write_tree(tmp_path / "taken", kernel_image("k"), [])
