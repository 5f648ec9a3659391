"""The commands of the ``longstream`` program, one module each."""
