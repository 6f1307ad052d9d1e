"""A stack as processes of this machine: the scheduler, kubelet and kubectl of one machine. Linux.

`run` brings a stack up and down, `supervisor` keeps its `process`es, `state` is its folder below
.splitstack, `status` and `log_reader` show what runs. Nothing of Kubernetes or Pulumi comes in.
"""
