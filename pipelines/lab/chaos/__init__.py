"""Workers and brokers killed, frozen, stopped and restarted by a seeded plan, and what is left checked.

plan: what happens when. players: the workers, the broker's accidents, the speakers. watching: when
results came, who owned what. check: an independent reading of all topics from their start. run: the
whole of it.
"""
