"""How a model's files hold quantized weights: what both the plan and a stage check. No torch."""
