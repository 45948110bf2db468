"""Tiny random models of every image-text-to-text architecture, and the probes that say how well topv prunes them."""
