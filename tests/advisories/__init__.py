"""What servers of language models have been warned of, one class of advisory a file.

Each test fails on a build that has the fault. `python -m pytest tests/advisories`.
"""
