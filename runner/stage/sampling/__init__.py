"""The last stage's choice of tokens, from logits and each request's parameters.

A draw depends on scores and on (seed, choice, position, id) only, never on who shares the step, and
hardly on the scores' last bits. What transformers has as a logits processor is its own.
"""
