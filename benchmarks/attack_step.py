"""Attack steps (forward pass and gradient for the input, batch norm in evaluation), beside
PyTorch's.

    python benchmarks/attack_step.py --models vgg16 --batch_sizes 64 --output FILE.json

See `beside_torch` for how it is timed.
"""

import beside_torch

if __name__ == "__main__":
  beside_torch.main(__doc__.splitlines()[0], "attacking")
