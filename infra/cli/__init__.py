"""The `splitstack` command: options in, text or JSON and an exit code out.

What a command does lies in the other rooms; here are its options, what it prints, and the
conversation of `splitstack chat`. Clients that are slow to import are imported by their commands.
"""
