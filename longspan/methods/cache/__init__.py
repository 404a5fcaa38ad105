"""Methods of the family cache."""
