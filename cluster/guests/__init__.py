"""Guests of other processes: their wire, who may come, and the desk that gives each its turn.

``docs/protocol.md`` gives every frame byte by byte. Clients import `wire`, `ports` and `keys`; note that
none of these may load numba.
"""
