"""The guest: a small operating system in a virtual CPU that runs threads and perf."""
