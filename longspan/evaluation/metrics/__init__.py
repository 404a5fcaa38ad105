"""Numbers made of samples: intervals for accuracies and differences, perplexity by position."""
