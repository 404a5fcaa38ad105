"""Methods of the family attention."""
