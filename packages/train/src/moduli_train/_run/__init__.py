"""Run: what stands around a training loop; the loop itself stays the user's."""
