"""How it learns: images, optimizers, the loop."""
