"""Writes docs/conformance.md."""

from tests.conformance.report import write

write()
