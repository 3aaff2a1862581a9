"""What happens: the registers, counters, schedulers and guests of an emulated host, as compiled kernels.

This room owns every rule by which emulated state changes: the architectural PMU, host perf's local
scheduling, the guest driver's access sequences, the vPMU designs, and the engine that advances all rows of a
process in one call. Its state is one flat ``uint64`` array, the arena. It imports NumPy and numba only, opens
no socket, knows no actor, and holds no floating-point number.
"""
