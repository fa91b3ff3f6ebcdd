"""Factorizers: matrix in, factors out. Knows no file format; one algorithm a file."""
