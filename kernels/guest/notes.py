"""What a guest's perf notes beside samples and throttling: threads that end.

Nothing here is part of a row's hash: what is logged changes no result.
"""

import numpy as np

from vpmu.kernels.columns import G_CURRENT, G_ID, G_LOG, G_SEQUENCE, TH_ID, TH_STATE
from vpmu.kernels.guest.threads import FINISHED, end_of_work
from vpmu.kernels.integers import U0, U1
from vpmu.kernels.jit import Arena, kernel
from vpmu.kernels.log import RECORD_EXIT, head_word, keeps, log_record


@kernel
def work_ends(s: Arena, log: Arena, g: np.uint64, now: np.uint64) -> None:
    """Let the current thread, which is at the end of its work, sleep or exit, and log an exit."""
    thread = s[g + G_CURRENT]
    end_of_work(s, g, now)
    if s[thread + TH_STATE] == FINISHED and keeps(s, RECORD_EXIT) and s[g + G_LOG] != U0:
        s[g + G_SEQUENCE] += U1
        head = head_word(RECORD_EXIT, U0, U0)
        log_record(s, log, head, now, s[g + G_ID], s[g + G_SEQUENCE], s[thread + TH_ID], U0)
