"""Saved keys and values made small, and fetched in time: the codec, its entropy coder, the controller and a range server."""
