"""Which keys matter, estimated: scores of pages, tokens, channels and centroids for selections, and the selection itself.

Users import from the submodules: `pages` (summaries of pages and their scores), `channels` (scores from a few channels),
`centroids` (scores of clusters of keys), `select` (`top_k`, `top_p`, `select_pages`); for prefill `vertical_slash`, `blocks`
and `low_bit`.
"""
