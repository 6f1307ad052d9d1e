"""A spec brought into a running group: `python -m rollout`, the program of the rollout Job.

`group` hands the spec over and asks how far its swap is, `swap` is what the master says of one,
`bringing_in` follows it to its end, `question` asks what only a model that serves can answer.

What may come in: what proves an edit from outside. Nothing here knows how a group swaps.
"""
