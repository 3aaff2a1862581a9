"""perf's own formats: what the guests' perf sessions leave, as files that the real ``perf`` reads.

`output` is the way in: it takes a run's records as they come and writes one ``perf.data`` per ``perf record``
session, the ELF images that make its symbols resolve, and each ``perf stat`` session as text, CSV, JSON and
as a file for ``perf stat report``. The formats are those of perf 6.1.

`layout` has the file's frame, `attr` the events, `features` what ``perf report --header`` shows, `records`
what perf notes beside samples, `encode` the samples, `writer` the file; `elf` and `symbols` the images;
`plan` says which threads and vCPUs a session has, `spool` puts several vCPUs' records in order; `stat_file`,
`stat_rows`, `stat_metrics` and `stat_text` are perf stat's.
"""
