"""The blocks: which there are, what each is, its replicas and their load.

The table comes from the spec, or from discovery, which follows the cluster's Services and alone
imports the Kubernetes client. Knows nothing of endpoints, keys or the request log.
"""
