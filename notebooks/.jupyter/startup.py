"""Run by each kernel that `make lab` starts, so that a first cell run out of order is explained too."""

if "get_ipython" in globals():  # not in a plain Python of JupyterLab's terminal
    __import__("labkit.sentences").sentences.install()
