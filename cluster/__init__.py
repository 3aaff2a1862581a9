"""How a run is spread over processes and machines.

This room owns the wire format, the ZeroMQ hub, the time windows, placement and the start of worker processes
on Dask. It is the only room that opens sockets. It imports ``vpmu.actors`` and ``vpmu.kernels``.
"""
