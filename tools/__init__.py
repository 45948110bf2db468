"""Tools for the development of topv, run from its root; the wheel holds none of them."""
