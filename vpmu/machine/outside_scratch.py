from dataclasses import dataclass
NEVER = 2**63
@dataclass(slots=True, frozen=True)
class Watched:
    kind: int
    levels: int
    left: int
@dataclass(slots=True, frozen=True)
class Result:
    fault: bool
    value: int
    cost_ns: int
@dataclass(slots=True, frozen=True)
class Grant:
    now_ns: int
    limit_ns: int
    result: Result | None
    pmi: int | None
    watched: tuple[Watched, ...]
@dataclass(slots=True)
class Report:
    end_ns: int
    reason: int
    retired: dict[tuple[int, int], int]
    operation: int = 0
    register: int = 0
    value: int = 0
    level: int = 1
    timer_at_ns: int = NEVER
