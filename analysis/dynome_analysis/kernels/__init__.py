"""Numba kernels: short loops over arrays, no options, no checks; the modules above them check and name things.

Nothing here imports the rest of the package, and every kernel has a slow twin in ``tests/naive.py``.
"""
