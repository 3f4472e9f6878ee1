"""What the ways to train the post's network cost: the post's own, both trainers, `torch.compile`, a population."""
