"""The same values in memory of another layout."""
