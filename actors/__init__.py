"""Who takes part: physical CPUs, host perf, vCPUs and VMs as trio actors.

This room owns the addresses, the mailboxes, the messages and the slow path: what happens when a kernel stops
because it needs somebody else. An actor's state is synchronous; its loop only moves messages. It imports
``vpmu.kernels`` and opens no socket.
"""
