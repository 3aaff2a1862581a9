"""vPMU designs: one module each, found by name.

A design module defines twelve kernels of one signature,
``(s, v, p, index, value, now) -> (outcome, value, cost_ns, stop)``: set_msr, get_msr, rdpmc, trigger_event,
deliver_pmi, perf_arguments, perf_done, sched_in, sched_out, vm_entry, vm_exit and destroy. docs/design.md and
docs/add-a-design.md say what each does.
"""
