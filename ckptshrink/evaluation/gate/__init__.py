"""Whether a candidate is good enough beside its baseline, and how sure that is."""
