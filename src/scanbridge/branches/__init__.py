"""What the two branches of an RLBCD run are like, and what their consistency score is worth."""
