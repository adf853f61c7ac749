"""What distillation costs, in training steps of the student alone: `agrekd bench`."""
