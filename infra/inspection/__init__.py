"""What clusters and registries say when they are asked: `splitstack doctor` before `pulumi up`,
`splitstack status` after it.

`client.py` opens a cluster and words what it says. Doctor's checks are a module each, and yield a
Finding for what is wrong; `diagnosis.py` tells why a pod is not ready.

What may come in: questions. Nothing here changes a cluster, nothing that declares imports it.
"""
