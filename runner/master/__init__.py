"""The master: the one process that speaks HTTP and text, and says what the stages compute next.

A request comes down these rooms, each of which imports from those below it only:

    api      HTTP in, checked requests out; tokens in, answers out
    text     token ids <-> text: tokenizer, chat template, stop strings
    engine   requests in, token events out: what is computed next, and again after a loss
    group    who computes it: membership, epochs, the ends of the pipeline

No torch, transformers or numpy may come in: the master computes nothing that a model does.
"""
