"""Calls of tools in a model's answer: which form it writes them in, and how they are read.

families knows the forms, call_text reads one answer as it comes. transformers has a parser of its
own, for models that bring a response template; it is not used, since the master has no transformers
and few models bring one (docs/decisions/0032).
"""
