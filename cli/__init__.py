"""The command line of ckptshrink. It decides nothing: every command is a call of the library."""
