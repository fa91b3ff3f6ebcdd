"""Exporters: a plan and an opened checkpoint in, files of the target out."""
