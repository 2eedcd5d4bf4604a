"""Statistics: intervals, fits and the choice of settings."""
