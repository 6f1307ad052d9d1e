"""Quantized weights, dequantized one after the other while a stage loads.

What a scheme's tensors are and whether they fit each other stands in contract/quantization, which
the plan reads too; here is what they mean.
"""
