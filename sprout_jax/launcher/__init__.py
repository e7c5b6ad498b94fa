"""What the command line does with a config: train, evaluate, report. No mathematics.

The files: `command` (the command line), `configuration` (configs: loading, changing, checking),
`modes` (the three modes), `trained` (a trained workdir as a model that can be called).
"""
