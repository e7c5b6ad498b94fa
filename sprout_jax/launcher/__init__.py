"""The command line and its three modes: train, evaluate, report.

The files: `command` (the command line), `configuration` (loading, changing and checking configs),
`modes` (the three modes), `trained` (loading the trained model of a workdir), `published` (files of
published weights in the place of a trained run).
"""
