"""Golden tests: what the outside sees, recorded word for word.

Each module pins one contract (the Pulumi objects, the spec files, the bytes on the wire, the
names of metrics, the codes of errors, the command line, the OpenAPI documents) against the files
in recorded/. They hold through any change of the code's own layout: a difference here is a
difference to a cluster, a process, a client or a script that is already out there.

After an intended change, write them anew and read the diff before it is committed:

    python -m tests.goldens
"""
