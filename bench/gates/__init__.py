"""The gates of the bundle ``mini``: every acceptance figure measured, with an interval, from fixed seeds.

``make gates``, or ``python -m bench.gates --help``. Sections are stored as soon as they are done, LoRAs and pictures
stay under bench/out/gates, so a call that was cut short goes on where it stopped.
"""
