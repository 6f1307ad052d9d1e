"""Token ids <-> text, which only the master knows: the stages compute ids.

model_text and chat_template make ids of a prompt; choice makes text of one choice's ids, streams
that of several side by side, as it comes. Nothing of HTTP comes in, and no transformers: the
results are held equal to its by tests.
"""
