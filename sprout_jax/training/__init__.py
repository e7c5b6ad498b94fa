"""Training: state, optimizers, the pure step, its compilation for many devices, checkpoints, loop.

Data flow: `loop.train` gets a data set, a model and a method. It restores the newest state
(`checkpoints`) or makes one (`state`), puts the data set into device memory, and calls the compiled
steps (`parallel.compile_steps` of `step.train_step`) a few at a time; `metrics` writes what the
user sees. `agreement` keeps several processes together where one of them fails, `stopping` says
whether a signal asks for the end. Nothing outside this room imports `loop` but the launcher's.
"""
