"""Which rank holds which layers, what memory that takes, and the spec of every process.

Worked out from the stack file and the model's config.json alone, so that it is the same for one
machine, for a cluster and for `splitstack plan`. What starts a process or asks one is elsewhere.
"""
