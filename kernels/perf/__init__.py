"""Linux perf (5.0) of one CPU: events, contexts, counter assignment, periods, PMI handling, rotation.

The same code serves the guest's perf and the host's: it decides, and emits the MSR accesses that the decision
takes as micro-operations into a queue. A guest carries them out one by one, each through the vPMU; a host
carries them out on its own hardware at once.
"""
