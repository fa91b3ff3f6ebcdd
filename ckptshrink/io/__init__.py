"""Reading and writing checkpoint containers: one format a file, and one creator of files."""
