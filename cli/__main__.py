"""Run the command line as ``python -m ckptshrink_cli``."""

from ckptshrink_cli.main import entry

if __name__ == "__main__":  # a worker process of multiprocessing imports the main module too
    entry()
