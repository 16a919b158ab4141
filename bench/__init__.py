"""Side-by-side measurements of cnnkern's kernels against the vendor library a user would otherwise run.

``cnnkern bench`` is the command; ``run.py`` is where to start reading.
"""
