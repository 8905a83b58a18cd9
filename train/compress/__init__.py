"""Making models small: distillation and structured pruning."""
