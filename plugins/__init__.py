"""The stages: one folder each, found through the entry-point group ``rbctl.plugins``."""
