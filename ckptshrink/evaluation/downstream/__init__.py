"""SST-5, SNLI and SQuAD by AllenNLP's own models over an ELMo; see `tasks`."""
