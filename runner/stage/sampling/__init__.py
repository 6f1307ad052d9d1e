"""The last stage's choice of tokens, from logits and each request's parameters.

A draw depends on seed, choice and position only, never on who shares the step. What transformers
has as a logits processor is its own.
"""
