"""Schemes of window extension, one file each, found by their place."""
