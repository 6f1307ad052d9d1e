"""What is computed next: token ids in, token events out, whatever happens to the group.

The engine owns the ledger of open requests; the scheduler decides on each step, with the measured
cost of steps and the number of micro-batches that follows from it; the watch finds what is
overdue. What was being computed when epochs were lost is tried alone (requests, scheduler). No
text, no HTTP and no sockets come in here: below it lies the group, as `RankGroup`.
"""
