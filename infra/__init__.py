"""The deployment of one split model: from its stack file to processes or pods.

Commands (`cli`) stand on what looks at clusters (`inspect`), what acts on them (`__main__`, the
Pulumi program, with `cluster` and `policy`) or on this machine (`local`), what reads AIOS's
documents (`aios`), who holds what (`plan`), and the stack file (`stack`). Each imports only what
comes after it, and of the processes that it starts nothing but `contract`.
"""
