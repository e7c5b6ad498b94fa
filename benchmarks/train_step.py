"""Times training steps for each model, batch size and method, beside PyTorch's.

    python benchmarks/train_step.py --models vgg16 --batch_sizes 64 --output FILE.json

Our steps train as the launcher does: crops and flips of data on the device, and several steps in
one compiled call. `beside_torch` describes the timing.
"""

import beside_torch

if __name__ == "__main__":
  beside_torch.main(__doc__.splitlines()[0], "training")
