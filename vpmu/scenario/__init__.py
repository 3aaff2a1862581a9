"""Scenarios: what a run emulates, read from TOML, checked before anything runs."""

from vpmu.scenario.events import event_groups
from vpmu.scenario.load import load_scenario, parse_scenario
from vpmu.scenario.model import Function, Host, Program, Scenario, Session, Thread, Tool, Vm

__all__ = [
    "Function",
    "Host",
    "Program",
    "Scenario",
    "Session",
    "Thread",
    "Tool",
    "Vm",
    "event_groups",
    "load_scenario",
    "parse_scenario",
]
