"""The demo: what it runs, the worker it starts, what it counts at the end. See ``commands/demo.py``."""
