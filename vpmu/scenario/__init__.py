"""Scenarios: what a run emulates, read from TOML, checked before anything runs."""

from vpmu.scenario.events import event_groups
from vpmu.scenario.fleet import Move, Reboot, moves, reboots
from vpmu.scenario.load import load_scenario, parse_scenario
from vpmu.scenario.model import (
    Event,
    Fleet,
    Function,
    Host,
    Program,
    Scenario,
    Session,
    Template,
    Thread,
    Tool,
    Vm,
)

__all__ = [
    "Event",
    "Fleet",
    "Function",
    "Host",
    "Move",
    "Program",
    "Reboot",
    "Scenario",
    "Session",
    "Template",
    "Thread",
    "Tool",
    "Vm",
    "event_groups",
    "load_scenario",
    "moves",
    "parse_scenario",
    "reboots",
]
