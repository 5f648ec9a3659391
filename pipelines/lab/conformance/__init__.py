"""Does an engine remember an endless stream exactly? Cases with a known right answer, for any engine.

``reference`` says what is right: StreamingLLM, recomputed for every token, slow, sharing nothing with
any engine. ``cases`` are the questions, ``engine`` is the interface an engine is asked through, and one
small module per engine implements it. What an engine does not have is *not offered*; that is no failure.
"""
