"""Each backend in a process of its own, and how its calls are made and timed there."""
