"""The component SplitStack: a stack as one resource of another program.

Pulumi takes this folder as a package (PulumiPlugin.yaml) and runs __main__.py. Not beside
Pulumi.yaml: the command refuses a folder that has both.
"""
