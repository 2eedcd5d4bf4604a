"""Train the runs of a plan: device setup, compiled steps, the training loop, validation and checkpoints."""
