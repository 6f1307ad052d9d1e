"""Who computes it: which process holds which rank, and the life of one epoch after the other.

Membership keeps the stages' control connections, PipelineEnds the two data links of an epoch that
are the master's. What the steps are about is the engine's: here they are only sent and returned.
"""
