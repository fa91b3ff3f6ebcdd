"""Many checkpoints: which there are, what is left to do of each, and who does it."""
