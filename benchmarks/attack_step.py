"""Times attack steps, beside PyTorch's.

    python benchmarks/attack_step.py --models vgg16 --batch_sizes 64 --output FILE.json

An attack step is a forward pass and the gradient for the input, with batch norm in evaluation mode.
`beside_torch` describes the timing.
"""

import beside_torch

if __name__ == "__main__":
  beside_torch.main(__doc__.splitlines()[0], "attacking")
