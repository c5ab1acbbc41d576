"""Data for training: batches of arrays, and where data of any kind stands."""
