"""Traces of real hosts: lines to events (`reader`), events to accesses of the PMU (`accesses`)."""
