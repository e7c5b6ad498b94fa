"""Training: state, optimizers, the pure step, its compilation for many devices, checkpoints, loop.

Data flow: `loop.train` reads the data set into device memory, builds the model and the method, and
calls `parallel.compile_steps(step.train_step)` for a few steps at a time; `checkpoints` keeps the
state, `metrics` what the user sees. Nothing outside this room imports `loop` but the launcher.
"""
