"""From a request to a plan: which matrices, how far each, and why. Writes nothing."""
