"""Models that run elsewhere, or by another library: what answers the engine's requests there."""
