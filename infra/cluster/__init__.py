"""What a stack is in its clusters: every Kubernetes object, declared with Pulumi.

`stack.py` reads and checks the stack, `fit.py` fits it to clusters (pure), `objects.py` and
`tier.py` have what objects and tiers share, `pods.py` hardens every pod; then one module for each
component. `infra/__main__.py` puts them together. `recorded.py` runs that without an engine.

What may come in: what is declared. Nothing here asks a cluster; that is `infra/inspection`.
"""
