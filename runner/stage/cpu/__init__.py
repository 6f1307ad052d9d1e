"""What makes a stage fast and small on a CPU: packed matrices, and memory that is given back.

Everything here may be missing or switched off: the plain modules give the same tokens.
"""
