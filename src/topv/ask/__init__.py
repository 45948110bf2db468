"""Asking a model about pictures under pruning methods: what the command line and the page in the browser share."""
