"""Runs all benchmarks of a CPU or of a GPU, in resumable pieces of minutes.

    python benchmarks/run_all.py cpu --output benchmarks/results/cpu
    python benchmarks/run_all.py gpu --output benchmarks/results/gpu --minutes 9

Every piece is a command that writes a JSON file of rows. Complete files are skipped. For the other
files, only the missing rows are measured. After --minutes, no further piece starts, and the running
piece is stopped.
"""

import argparse
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
# Of a timing, seconds: training runs more of them in a compiled call, whose memory takes time to be
# had.
STEPS = {"vgg16": 8, "preact_resnet18": 8, "wrn_16_4": 8, "small_cnn": 60}
PIECES = {
  "cpu": {
    **{
      f"train_{model}": f"train_step.py --models {model} --batch_sizes 64,128 --num_steps {count}"
      for model, count in STEPS.items()
    },
    **{
      f"attack_{model}": f"attack_step.py --models {model} --batch_sizes 64,128 --num_steps {count}"
      for model, count in STEPS.items()
    },
    "method_cost": "method_cost.py --model vgg16 --batch_size 64 --num_steps 4 --rows "
    "natural,sprout,sprout_mean,pgd",
    "method_cost_small_cnn": "method_cost.py --model small_cnn --image_shape 8,8,1 --batch_size 64 "
    "--num_steps 20",
    "convolution": "convolution.py --forms windows,rows,chosen",
    **{f"profile_{model}": f"profile_step.py --model {model}" for model in STEPS},
    "input_pipeline": "input_pipeline.py --model vgg16 --batch_size 64",
    "startup": "startup.py --model vgg16 --rounds 3",
  },
  "gpu": {
    # 989 TFLOP/s: an H200's (and H100 SXM's) dense bfloat16 peak, by its data sheet.
    "train_wrn_28_10": "train_step.py --models wrn_28_10 --batch_sizes 256,512 --dtype bfloat16 "
    "--num_steps 20 --peak_tflops 989",
    "train_vgg16": "train_step.py --models vgg16 --batch_sizes 128,512,1024 --dtype bfloat16 "
    "--methods natural,sprout,sprout_released,pgd --num_steps 50",
    "train_preact_resnet18": "train_step.py --models preact_resnet18 --batch_sizes 128,512 --dtype "
    "bfloat16 --num_steps 50",
    "train_vgg16_float32": "train_step.py --models vgg16 --batch_sizes 128 --num_steps 50",
    "attack_vgg16": "attack_step.py --models vgg16 --batch_sizes 512 --num_steps 50",
    "method_cost": "method_cost.py --model vgg16 --batch_size 128 --num_steps 50",
    "input_pipeline": "input_pipeline.py --model vgg16 --batch_size 128 --num_steps 100 --calls 5",
    "startup": "startup.py --model vgg16 --rounds 3",
  },
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("kind", choices=PIECES)
  parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the JSON files")
  parser.add_argument("--minutes", type=float, default=float("inf"), help="time for this call")
  args = parser.parse_args()
  args.output.mkdir(parents=True, exist_ok=True)
  end, failed = time.monotonic() + 60 * args.minutes, []
  for name, command in PIECES[args.kind].items():
    done, rows = args.output / f"{name}.done", args.output / f"{name}.json"
    if done.exists():
      continue
    left = end - time.monotonic()
    if left <= 0:
      sys.exit(f"time is up before {name}; the same command continues")
    print(f"== {name}: {command}", flush=True)
    try:
      code = subprocess.run(
        [sys.executable, *command.split(), "--output", str(rows.absolute())],
        cwd=HERE,
        timeout=left if left < float("inf") else None,
      ).returncode
    except subprocess.TimeoutExpired:
      sys.exit(f"time is up within {name}; the same command continues")
    if code:
      failed.append(name)
    else:
      done.touch()
  if failed:
    sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
  main()
