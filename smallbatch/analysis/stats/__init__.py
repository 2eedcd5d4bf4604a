"""Statistics: confidence intervals, fits, and the selection of hyperparameters."""
