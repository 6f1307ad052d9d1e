"""AIOS's documents become stack files: a `splits/create` request, a `block.json`.

All knowledge of AIOS's names lies here. Each import says what of a document it did not take over
and why; what comes out is held against the rules of the stack file.
"""
