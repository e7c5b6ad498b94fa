"""Training steps per model, batch size and method, beside the same steps in PyTorch.

    python benchmarks/train_step.py --models vgg16 --batch_sizes 64 --output FILE.json

Ours train as the launcher does: crops and flips of data on the device, several steps in one
compiled call. See `beside_torch` for how it is timed.
"""

import beside_torch

if __name__ == "__main__":
  beside_torch.main(__doc__.splitlines()[0], "training")
