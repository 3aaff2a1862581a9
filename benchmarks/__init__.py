"""What `make bench` measures: accesses, a fleet, the hub, memory, perf's files, start-up."""
