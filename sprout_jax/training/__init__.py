"""Training: the state, the pure step, its compilation for many devices, checkpoints, and the loop.

Data flow: `loop.train` gets a data set, a model and a method. It restores the newest state
(`checkpoints`) or creates one (`state`). A `feed` gives the step its minibatches, from device
memory or from a streamed set, and calls what `parallel` compiled from `step.train_step`. `metrics`
writes the records. `replicas` compares what the devices hold before a state is saved. `agreement`
makes all processes stop where one of them fails. `stopping` handles signals. Only the launcher
imports `loop`.
"""
