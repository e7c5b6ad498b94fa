"""Training: the state, the pure step, its compilation for many devices, checkpoints, and the loop.

Data flow: `loop.train` gets a data set, a model and a method. It restores the newest state
(`checkpoints`) or creates one (`state`), puts the data set into device memory, and calls several
compiled steps at a time (`parallel.compile_steps` of `step.train_step`). `metrics` writes the
records. `agreement` makes all processes stop where one of them fails. `stopping` handles signals.
Only the launcher imports `loop`.
"""
