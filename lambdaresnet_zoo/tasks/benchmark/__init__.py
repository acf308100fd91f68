"""The command `benchmark`: this package's layer and networks beside those that others use in their place."""
