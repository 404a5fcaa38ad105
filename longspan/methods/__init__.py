"""Published methods, one file each, found by file name."""
