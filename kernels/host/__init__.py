"""The host: its clock and interrupts, scheduler, perf events and the hardware reservation."""
