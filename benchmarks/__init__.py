"""What `make bench` measures: accesses, a fleet, the hub, memory, start-up."""
