"""vPMU designs: one module each, found by name.

A design module defines ten kernels of one signature, ``(s, v, p, index, value, now) -> (outcome, value, cost_ns, stop)``: set_msr,
get_msr, rdpmc, deliver_pmi, sched_in, sched_out, vm_entry, vm_exit, perf_done and destroy; docs/design.md and docs/add-a-design.md say what each does.
"""
