"""From a plan to a finished run: devices, the compiled step, validation, checkpoints, and the loop."""
