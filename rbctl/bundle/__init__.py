"""A bundle: all frozen networks of a base model in one folder."""
