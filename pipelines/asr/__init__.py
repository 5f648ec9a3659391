"""Speech to segments: a recogniser's weights, and utterances cut at silence."""
