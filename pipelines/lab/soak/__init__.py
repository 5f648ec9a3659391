"""A long run watched: what goes in, what comes out, and what the processes use meanwhile."""
