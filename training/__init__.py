"""The trainer of the bundled models: ``python -m training.train`` from the project's root. Not in the wheel."""
