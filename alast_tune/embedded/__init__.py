"""The embedded backbone: weights, their card, and the script that made both."""
