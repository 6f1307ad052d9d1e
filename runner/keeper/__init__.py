"""The keeper: the first process of a rank whose engine is vLLM's (platform vllm).

It owns the engine's processes and never computes. `command` makes their arguments and environment
of the specs, `warden` is the small program between keeper and engine that leaves no orphan,
`engine` one life of them, `rank` what this rank is told, `lead` the group as rank 0 sees it,
`watch` whether the engine still steps. `asking` and `follow_up` make of its answers ones that can
be carried,
`api` and `metrics` are rank 0's HTTP.

What may come in: what the engine cannot do for itself. Membership, specs and swaps are those of
runner/master/group; no torch.
"""
