"""Traces of real hosts: lines to events (`reader`), to accesses of the PMU (`accesses`), to a `scenario`."""
