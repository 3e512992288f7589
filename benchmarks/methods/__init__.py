"""The methods of the tables, one file a family: each takes a job and returns a trained network."""
