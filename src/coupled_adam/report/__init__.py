"""``coupled-adam compare``: does it pay for this text? A plan, an experiment, a recommendation."""
