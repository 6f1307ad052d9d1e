"""One stage: some layers of the model and their KV cache, in a process of their own.

`process` talks to the others and runs the steps, `model` and `sampling` compute them, `cpu` makes
that fast without a GPU. The master is met on the wire only.
"""
