"""Kills: a command that is stopped anywhere, and started again until it ends, leaves what it leaves undisturbed.

``commands`` is the table of what is run, ``harness`` runs, kills and compares, ``documented`` lists what may differ.
``make kill`` tries 300 kills; ``python -m kill --help`` in tests/ says how to try fewer, or one command.
"""
