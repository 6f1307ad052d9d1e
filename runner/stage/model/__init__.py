"""The model of a stage: transformers' own modeling code with only this stage's layers in it.

One forward on the meta device tells how a model is made (layout), and with that which tensors are
read (checkpoint) and what is left out (pruned). Attention over the requests of a step, their KV
cache and length-dependent rotary factors are ours. Nothing here is of one architecture by name,
except the list of those that are refused.
"""
