"""Methods of the family positions."""
