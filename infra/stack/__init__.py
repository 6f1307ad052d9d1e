"""The stack file: its keys, defaults and rules, and what follows from it alone.

What reads, checks, writes or documents the file, and names that both this machine and a cluster
take from it. Nothing here asks a model, a machine or a cluster, and nothing else of `infra` comes
in: every other room stands on this one.
"""
