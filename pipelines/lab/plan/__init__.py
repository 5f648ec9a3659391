"""``longstream plan``: how many streams fit on a device, how many workers and partitions that makes, and
a simulation of it. ``arithmetic`` computes, ``work`` measures, ``simulate`` simulates."""
