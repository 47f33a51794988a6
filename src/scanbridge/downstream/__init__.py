"""What synthetic images are worth for a task that a clinician has: the same network taught with and without them."""
