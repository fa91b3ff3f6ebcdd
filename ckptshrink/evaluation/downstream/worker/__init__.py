"""Scripts that run beside AllenNLP, in an interpreter of the user's choice.

They are started by path, need Python 3.8 or later, and import nothing of ckptshrink: the
interpreter may be one that has neither ckptshrink nor a Python that could run it.
"""
